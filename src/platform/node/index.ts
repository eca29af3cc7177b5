/** What the library needs of its runtime, as Node has it. The one door from the upper floors to `node:*` for computing.
 *  Invariant: importing this file loads none of Node's own modules that cost time, and starts nothing. */

export { availableWorkers, type CodecPool, createCodecPool } from './codec-pool.ts';
export {
  type CodecName,
  type DecodeReply,
  type DecodeRequest,
  decodeUnit,
  type EncodeReply,
  type EncodeRequest,
  encodeUnit,
  startCodec,
} from './codecs.ts';
export { NodeBlockCipher, nodeCrypto } from './crypto.ts';
export { DIGEST_BYTES, digestUnits } from './digests.ts';
export { type Native, type NativeOutcome, NOT_AVAILABLE, native, type RangeCalls, withoutNative } from './native.ts';
export { SharedSlots } from './slots.ts';
