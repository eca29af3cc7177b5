import { describe, expect, it } from 'vitest';
import { GuestHistory } from '../../src/testing/guest-history.ts';

function history(tick: () => number = () => 0): GuestHistory {
  return new GuestHistory(4 * 512, 512, () => 0, tick);
}

describe('what a read may see', () => {
  it('is the last write that had ended before it began, and any that ran with it', () => {
    const guest = history();
    const first = guest.begin(0, 1, 'data');
    guest.end(first);
    const second = guest.begin(0, 1, 'data');
    const from = guest.now();
    expect(guest.allowed(0, from, guest.now())).toEqual([first.id, second.id]);
    guest.end(second);
    expect(guest.allowed(0, from, guest.now())).toEqual([first.id, second.id]);
    const later = guest.now();
    expect(guest.allowed(0, later, later)).toEqual([second.id]);
    expect(guest.allowed(1, later, later)).toEqual([0]);
  });

  it('is either of two writes that ran together', () => {
    const guest = history();
    const first = guest.begin(0, 2, 'data');
    const second = guest.begin(0, 1, 'zero');
    guest.end(first);
    guest.end(second);
    const now = guest.now();
    expect(guest.allowed(0, now, now)).toEqual([first.id, 0]);
    expect(guest.allowed(1, now, now)).toEqual([first.id]);
  });

  it('is either old or new after a request that failed, until something certain comes after it', () => {
    const guest = history();
    const failed = guest.begin(0, 1, 'data');
    guest.end(failed, true);
    let now = guest.now();
    expect(guest.allowed(0, now, now)).toEqual([0, failed.id]);
    const good = guest.begin(0, 1, 'data');
    guest.end(good);
    now = guest.now();
    expect(guest.allowed(0, now, now)).toEqual([good.id]);
  });
});

describe('what a crash may leave', () => {
  it('is the last flushed value or one written since, as far as it had begun', () => {
    let tick = 0;
    const guest = history(() => tick);
    const first = guest.begin(0, 1, 'data');
    guest.end(first);
    tick = 10;
    const second = guest.begin(0, 1, 'data');
    guest.end(second);
    const flush = guest.beginFlush();
    tick = 20;
    guest.endFlush(flush);
    tick = 30;
    const third = guest.begin(0, 1, 'data');
    guest.end(third);
    expect(guest.allowedAfterCrash(0, 5)).toEqual([0, first.id]);
    expect(guest.allowedAfterCrash(0, 15)).toEqual([0, first.id, second.id]);
    expect(guest.allowedAfterCrash(0, 25)).toEqual([second.id]);
    expect(guest.allowedAfterCrash(0, 35)).toEqual([second.id, third.id]);
  });

  it('does not count writes that a flush found still running', () => {
    const guest = history();
    const write = guest.begin(0, 1, 'data');
    const flush = guest.beginFlush();
    guest.end(write);
    guest.endFlush(flush);
    expect(guest.allowedAfterCrash(0, 100)).toEqual([0, write.id]);
  });
});

describe('stamps', () => {
  it('tell who wrote a cell and that it lies where it belongs', () => {
    const guest = history();
    const bytes = new Uint8Array(4 * 512);
    guest.stamp(bytes.subarray(512, 3 * 512), 1, 7);
    expect([0, 1, 2].map((cell) => guest.identify(bytes, cell * 512, cell))).toEqual([0, 7, 7]);
    expect(guest.identify(bytes, 512, 2)).toContain('content of another place');
    bytes[1000] = 1;
    expect(guest.identify(bytes, 512, 1)).toContain('mixed content');
    expect(guest.findWrong(bytes, 0, () => [0, 7])).toContain('cell 1 (offset 512)');
    bytes[1000] = bytes[996] as number;
    expect(guest.findWrong(bytes, 0, () => [0, 7])).toBeUndefined();
    expect(guest.findWrong(bytes, 0, () => [0])).toContain('holds write 7');
  });
});
