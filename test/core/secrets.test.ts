import { expect, it } from 'vitest';
import { secretsOf } from '../../src/core/secrets.ts';

it('a text is its UTF-8 bytes', () => {
  expect(secretsOf({ a: 'pä' })('a')).toEqual(Uint8Array.of(0x70, 0xc3, 0xa4));
});

it('every asking is a copy: wiping one leaves the secret as it is', () => {
  const secrets = secretsOf({ a: Uint8Array.of(1, 2) });
  secrets('a').fill(0);
  expect(secrets('a')).toEqual(Uint8Array.of(1, 2));
});

it('also of a Buffer, whose slices share its memory', () => {
  const secrets = secretsOf({ a: Buffer.of(1, 2) });
  secrets('a').fill(0);
  expect(secrets('a')).toEqual(Uint8Array.of(1, 2));
});

it.each(['b', 'toString', '__proto__'])('an id that nobody gave (%s) is an error that names it', (id) => {
  expect(() => secretsOf({ a: 'x' })(id)).toThrow(
    expect.objectContaining({ code: 'NOT_FOUND', reason: 'secret.missing' }),
  );
  expect(() => secretsOf(undefined)(id)).toThrow(`"${id}"`);
});
