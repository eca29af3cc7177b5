import { describe, expect, it } from 'vitest';
import { throttle } from '../../src/filters/throttle.ts';
import { ThrottleGroup } from '../../src/filters/throttle-group.ts';
import { Bucket, LIMIT_KEYS, type ThrottleLimits } from '../../src/filters/throttle-limits.ts';
import { MemoryStore } from '../../src/storage/memory.ts';
import { FakeClock, failureOf, filled, openFilter, settled } from './support.ts';

/** A group under a clock of its own, and a way to ask when requests pass. */
function group(limits: ThrottleLimits) {
  const clock = new FakeClock();
  const made = new ThrottleGroup(limits, clock);
  const passed: string[] = [];
  const ask = (
    member: ReturnType<ThrottleGroup['join']>,
    name: string,
    bytes = 512,
    how: 'read' | 'write' = 'read',
  ) => {
    void Promise.resolve(member.take(how, bytes, undefined)).then(() => passed.push(`${name}@${clock.now()}`));
  };
  return { clock, made, passed, ask };
}

describe('a bucket', () => {
  it('lets a tenth of a second pass at once, and then what leaks', () => {
    const bucket = new Bucket(100, 0, 1);
    for (let i = 0; i < 10; i++) bucket.fill(1);
    expect(bucket.wait).toBe(0);
    bucket.fill(1);
    expect(bucket.wait).toBe(10);
    bucket.leak(10);
    expect(bucket.wait).toBe(0);
    bucket.leak(1_000_000);
    for (let i = 0; i < 11; i++) bucket.fill(1);
    // Idle time is not saved up.
    expect(bucket.wait).toBe(10);
  });

  it('lets a burst pass for as long as it may last, at its own rate', () => {
    const bucket = new Bucket(10, 100, 2);
    let [passed, time] = [0, 0];
    for (; time < 60_000; time += 10) {
      while (bucket.wait === 0) {
        bucket.fill(1);
        passed++;
      }
      bucket.leak(10);
      if (time === 1990) {
        // Two seconds at 100, and a tenth of a second at once.
        expect(passed).toBeGreaterThan(195);
        expect(passed).toBeLessThan(215);
      }
    }
    // And 10 a second from then on.
    expect(passed).toBeGreaterThan(200 + 560);
    expect(passed).toBeLessThan(200 + 620);
  });
});

describe('limits', () => {
  const reasons: readonly (readonly [reason: string, limits: ThrottleLimits])[] = [
    ['throttle.conflict', { 'iops-total': 1, 'iops-read': 1 }],
    ['throttle.conflict', { 'bps-total': 1, 'bps-write': 1 }],
    ['throttle.conflict', { 'bps-total-max': 1, 'bps-write-max': 1 }],
    ['throttle.size-alone', { 'iops-size': 512 }],
    ['throttle.size-alone', { 'iops-size': 512, 'bps-total': 4 }],
    ['throttle.range', { 'iops-total': 1e15 + 1 }],
    ['throttle.range', { 'bps-read': 1, 'bps-read-max': Number.POSITIVE_INFINITY }],
    ['throttle.range', { 'bps-read': -1 }],
    ['throttle.length-range', { 'bps-read': 1, 'bps-read-max': 2, 'bps-read-max-length': 2 ** 32 }],
    ['throttle.burst-length', { 'bps-total': 100, 'bps-total-max-length': 0 }],
    ['throttle.burst-length-alone', { 'bps-total': 100, 'bps-total-max-length': 10 }],
    ['throttle.burst-too-long', { 'bps-total': 1e9, 'bps-total-max': 1e9, 'bps-total-max-length': 1e8 }],
    ['throttle.burst-alone', { 'bps-total-max': 100 }],
    ['throttle.burst-low', { 'bps-total': 100, 'bps-total-max': 50 }],
  ];
  for (const [reason, limits] of reasons) {
    it(`${JSON.stringify(limits)} are refused: ${reason}`, async () => {
      expect(await failureOf(() => new ThrottleGroup(limits))).toMatchObject({ code: 'OPTION', reason });
    });
  }

  it('are allowed up to the largest that there is', () => {
    expect(() => new ThrottleGroup({ 'iops-total': 1e15, 'iops-total-max': 1e15 })).not.toThrow();
  });

  it('have 19 names', () => expect(new Set(LIMIT_KEYS).size).toBe(19));
});

describe('a throttle group', () => {
  it('lets everything pass at once where it has no limits', () => {
    const member = new ThrottleGroup({}, new FakeClock()).join();
    for (let i = 0; i < 1000; i++) expect(member.take('write', 2 ** 30, undefined)).toBeUndefined();
  });

  it('keeps requests per second', async () => {
    const { clock, made, passed, ask } = group({ 'iops-total': 10 });
    const member = made.join();
    for (let i = 0; i < 5; i++) ask(member, `r${i}`);
    await clock.pass(10_000);
    // One at once, and one more fills the bucket; then ten a second.
    expect(passed).toEqual(['r0@0', 'r1@0', 'r2@100', 'r3@200', 'r4@300']);
    expect(clock.alarms).toBe(0);
  });

  it('keeps bytes per second, whatever the length of a request', async () => {
    const { clock, made, passed, ask } = group({ 'bps-write': 1000 });
    const member = made.join();
    ask(member, 'a', 1100, 'write');
    ask(member, 'b', 500, 'write');
    ask(member, 'read', 10_000);
    ask(member, 'c', 100, 'write');
    await clock.pass(10_000);
    expect(passed).toEqual(['a@0', 'read@0', 'b@1000', 'c@1500']);
  });

  it('counts long requests as several where a size is given', async () => {
    const { clock, made, passed, ask } = group({ 'iops-total': 10, 'iops-size': 1000 });
    const member = made.join();
    ask(member, 'long', 11_000);
    ask(member, 'short', 10);
    ask(member, 'last', 10);
    await clock.pass(10_000);
    expect(passed).toEqual(['long@0', 'short@1000', 'last@1100']);
  });

  it('serves its members in turn, and each one in order', async () => {
    const { clock, made, passed, ask } = group({ 'iops-total': 10 });
    const [a, b, c] = [made.join(), made.join(), made.join()];
    ask(a, 'first');
    ask(a, 'second');
    for (let i = 0; i < 3; i++) ask(a, `a${i}`);
    for (let i = 0; i < 3; i++) ask(b, `b${i}`);
    ask(c, 'c0');
    await clock.pass(10_000);
    expect(passed.map((entry) => entry.split('@')[0])).toEqual([
      'first',
      'second',
      'a0',
      'b0',
      'c0',
      'a1',
      'b1',
      'a2',
      'b2',
    ]);
  });

  it('lets neither reads nor writes starve', async () => {
    const { clock, made, passed, ask } = group({ 'iops-total': 10 });
    const member = made.join();
    for (let i = 0; i < 6; i++) ask(member, `r${i}`);
    for (let i = 0; i < 3; i++) ask(member, `w${i}`, 512, 'write');
    await clock.pass(10_000);
    expect(passed.map((entry) => entry.split('@')[0])).toEqual(['r0', 'r1', 'w0', 'r2', 'w1', 'r3', 'w2', 'r4', 'r5']);
  });

  it('holds no request back for the limit of the other direction', async () => {
    const { clock, made, passed, ask } = group({ 'iops-read': 1, 'iops-write': 100 });
    const member = made.join();
    for (let i = 0; i < 3; i++) ask(member, `r${i}`);
    for (let i = 0; i < 12; i++) ask(member, `w${i}`, 512, 'write');
    await clock.pass(500);
    expect(passed.filter((entry) => entry.startsWith('w'))).toHaveLength(12);
    expect(passed.filter((entry) => entry.startsWith('r'))).toHaveLength(1);
    await clock.pass(5000);
    expect(passed).toHaveLength(15);
  });

  it('lets go who gives up, and who leaves', async () => {
    const { clock, made, passed, ask } = group({ 'iops-total': 1 });
    const [a, b] = [made.join(), made.join()];
    ask(a, 'now');
    const control = new AbortController();
    const given = failureOf(() => a.take('read', 1, control.signal));
    ask(b, 'b0');
    ask(a, 'a0');
    ask(a, 'a1');
    control.abort(new Error('enough'));
    expect(await given).toMatchObject({ code: 'ABORTED' });
    a.leave();
    await settled();
    expect(passed).toEqual(['now@0', 'a0@0', 'a1@0']);
    expect(made.waiting).toBe(1);
    await clock.pass(10_000);
    expect(passed.at(-1)).toMatch(/^b0@/);
    expect(made.waiting).toBe(0);
    expect(clock.alarms).toBe(0);
  });

  it('waits once more when its alarm came early', async () => {
    const { clock, made, passed, ask } = group({ 'iops-total': 10 });
    const early = { now: () => clock.now(), after: (ms: number, task: () => void) => clock.after(ms * 0.75, task) };
    const hasty = new ThrottleGroup({ 'iops-total': 10 }, early);
    const [member, plain] = [hasty.join(), made.join()];
    for (let i = 0; i < 4; i++) {
      ask(member, `r${i}`);
      ask(plain, `p${i}`);
    }
    await clock.pass(10_000);
    const times = (letter: string): number[] =>
      passed.filter((entry) => entry.startsWith(letter)).map((entry) => Math.round(Number(entry.split('@')[1])));
    expect(times('r')).toEqual(times('p'));
  });
});

describe('throttle', () => {
  it('holds reads, writes, zeroes and discards back, and nothing else', async () => {
    const clock = new FakeClock();
    const file = new MemoryStore({ size: 65_536 });
    const objects = { g: new ThrottleGroup({ 'iops-total': 1 }, clock) };
    const node = await openFilter(throttle, { file }, { throttleGroup: 'g' }, { objects });
    const done: string[] = [];
    const run = (name: string, pending: Promise<void> | undefined): void => {
      void Promise.resolve(pending).then(() => done.push(name));
    };
    run('read', node.read(0, new Uint8Array(512)));
    run('write', node.write(0, filled(3, 512)));
    run('zeroes', node.writeZeroes(4096, 4096));
    run('discard', node.discard(8192, 4096));
    run('flush', node.flush());
    run('truncate', node.truncate(100_000));
    await settled();
    expect(done).toEqual(['read', 'flush', 'truncate']);
    expect(file.bytes()[0]).toBe(0);
    await clock.pass(1100);
    expect(done.slice(3)).toEqual(['write']);
    expect(file.bytes()[0]).toBe(3);
    await clock.pass(5000);
    expect(done.slice(3)).toEqual(['write', 'zeroes', 'discard']);
  });

  it('of one group share its limits', async () => {
    const clock = new FakeClock();
    const objects = { g: new ThrottleGroup({ 'bps-total': 1000 }, clock) };
    const open = () =>
      openFilter(throttle, { file: new MemoryStore({ size: 65_536 }) }, { throttleGroup: 'g' }, { objects });
    const [a, b] = [await open(), await open()];
    await a.write(0, new Uint8Array(1100));
    const done: number[] = [];
    void Promise.resolve(b.write(0, new Uint8Array(100))).then(() => done.push(clock.now()));
    await clock.pass(999);
    expect(done).toEqual([]);
    await clock.pass(1);
    expect(done).toEqual([1000]);
  });

  it('lets what waits through when it is closed', async () => {
    const clock = new FakeClock();
    const file = new MemoryStore({ size: 65_536 });
    const objects = { g: new ThrottleGroup({ 'iops-total': 1 }, clock) };
    const node = await openFilter(throttle, { file }, { throttleGroup: 'g' }, { objects });
    await node.read(0, new Uint8Array(1));
    const write = Promise.resolve(node.write(0, filled(9, 10)));
    await node.close();
    await write;
    expect(file.bytes()[9]).toBe(9);
    expect(file.closed).toBe(false);
    expect(clock.alarms).toBe(0);
  });

  it('needs a group that there is', async () => {
    const file = new MemoryStore({ size: 512 });
    expect(await failureOf(() => openFilter(throttle, { file }))).toMatchObject({ reason: 'throttle.group-missing' });
    expect(await failureOf(() => openFilter(throttle, { file }, { throttleGroup: 'x' }))).toMatchObject({
      code: 'NOT_FOUND',
      reason: 'throttle.group',
      details: { group: 'x' },
    });
  });
});
