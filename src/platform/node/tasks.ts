/** What the project's worker threads can do. One entry here and one in `codec-worker.ts` makes a new kind. */
import type { SectorTask } from '../../crypto/bulk.ts';
import type { DecodeReply, DecodeRequest, EncodeReply, EncodeRequest } from './codecs.ts';
import type { DigestRequest, FileDigestRequest } from './digests.ts';

export interface CodecTasks {
  readonly encode: { readonly request: EncodeRequest; readonly reply: EncodeReply };
  readonly decode: { readonly request: DecodeRequest; readonly reply: DecodeReply };
  readonly digest: { readonly request: DigestRequest; readonly reply: Uint8Array };
  readonly digestFile: { readonly request: FileDigestRequest; readonly reply: Uint8Array };
  readonly sectors: { readonly request: SectorTask; readonly reply: undefined };
  readonly forget: { readonly request: { readonly id: number }; readonly reply: undefined };
}
