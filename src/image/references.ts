/** References: may this image open that file, and what does its name mean? Owns names (protocol prefixes, drive letters,
 *  relative names) and the caller's policy. Opens nothing itself.
 *  Invariant: a name that was found inside an image is never taken for anything but a file name or a known protocol's name. */
import { BlockError } from '../base/errors.ts';
import type { Reference, ReferenceStatus } from '../core/format.ts';
import type { ProtocolDriver } from '../core/protocol.ts';

/** What the caller's own function is told of a reference. */
export interface ResolvedReference extends Reference {
  /** The name after resolving it against the directory of `from`. */
  readonly resolved: string;
  /** Name of the image that holds the reference. */
  readonly from: string;
}

/** Which files an image may name.
 *  - `deny` (the default): none; opening such an image fails with REFERENCE_DENIED.
 *  - `layer-only`: this layer alone is opened; reading what another file would have to answer fails with REFERENCE_DENIED.
 *  - `same-directory`: plain names beside the image that holds them.
 *  - `allow`: everything, as qemu-img does.
 *  - a function: the caller decides each one. */
export type ReferencePolicy =
  | 'deny'
  | 'layer-only'
  | 'same-directory'
  | 'allow'
  | ((reference: ResolvedReference) => boolean);

/** The `name` of `name:rest`, unless a `/` stands before the colon or it is a Windows drive (`c:\`, `c:/`). */
export function protocolPrefix(name: string): string | undefined {
  const colon = name.indexOf(':');
  if (colon <= 0 || name.slice(0, colon).includes('/')) return undefined;
  if (colon === 1 && /^[a-zA-Z]:[\\/]/.test(name)) return undefined;
  return name.slice(0, colon);
}

/** The protocol that a name belongs to: that of its prefix, else the first of the list.
 *  @throws {@link BlockError} INVALID_ARGUMENT, reason `protocol.unknown`, details `{ name, protocol }`. */
export function protocolOf(name: string, protocols: readonly ProtocolDriver[]): ProtocolDriver {
  const prefix = protocolPrefix(name);
  const found = prefix === undefined ? protocols[0] : protocols.find((protocol) => protocol.schemes.includes(prefix));
  if (found !== undefined) return found;
  if (prefix === undefined) {
    throw new BlockError('INVALID_ARGUMENT', `could not open "${name}": no protocols were given`, {
      reason: 'protocol.none',
      details: { name },
    });
  }
  throw new BlockError('INVALID_ARGUMENT', `could not open "${name}": unknown protocol '${prefix}'`, {
    reason: 'protocol.unknown',
    details: { name, protocol: prefix },
  });
}

/** Where a reference leads. */
export interface ReferenceTarget {
  readonly protocol: ProtocolDriver;
  /** The name to open with it. */
  readonly resolved: string;
}

/** Finds out what a name inside the image `from` means.
 *  Data files are always plain file names, whatever they look like: a hostile image must not choose the protocol (CVE-2024-4467).
 *  @throws {@link BlockError} REFERENCE_DENIED, reason `reference.json`, for `json:` names; INVALID_ARGUMENT, reasons `reference.name`, `protocol.unknown`. */
export function resolveReference(
  reference: Reference,
  from: string,
  protocols: readonly ProtocolDriver[],
): ReferenceTarget {
  const { name, role } = reference;
  if (name === '' || name.includes('\0')) {
    throw new BlockError('INVALID_ARGUMENT', `"${from}": the recorded ${role} file name is not a name`, {
      reason: 'reference.name',
      details: { name, from },
    });
  }
  const prefix = protocolPrefix(name);
  if (prefix === undefined) return relativeTo(from, name, protocols);
  if (role === 'data') return relativeTo(from, `./${name}`, protocols);
  if (prefix === 'json') {
    throw new BlockError(
      'REFERENCE_DENIED',
      `"${from}": refers to "${name}"; json: names inside an image are refused`,
      {
        reason: 'reference.json',
        details: { name, from },
      },
    );
  }
  return { protocol: protocolOf(name, protocols), resolved: name };
}

function relativeTo(from: string, name: string, protocols: readonly ProtocolDriver[]): ReferenceTarget {
  const protocol = protocolOf(from, protocols);
  return { protocol, resolved: protocol.resolve(from, name) };
}

/** Looks at a file without opening it. @returns `undefined` when nothing is there. */
export async function statusOf(protocol: ProtocolDriver, resolved: string): Promise<ReferenceStatus | undefined> {
  const status = await protocol.status?.(resolved);
  if (status === undefined) return undefined;
  return {
    resolved,
    absolute: (await protocol.absolute?.(resolved)) ?? resolved,
    size: status.kind === 'file' || status.size > 0 ? status.size : undefined,
    modifiedSeconds: status.modifiedSeconds,
    identity: status.identity,
  };
}

/** Whether a policy lets a reference be looked at. */
export function allowsReference(policy: ReferencePolicy, reference: ResolvedReference): boolean {
  if (typeof policy === 'function') return policy(reference);
  return policy === 'allow' || (policy === 'same-directory' && isBareName(reference.name));
}

/** Asks the policy about one reference.
 *  @returns `open`, or `leave` when the file stays unopened (`layer-only`).
 *  @throws {@link BlockError} REFERENCE_DENIED, reason `reference.denied`, details `{ name, resolved, from, role }`. */
export function decideReference(policy: ReferencePolicy, reference: ResolvedReference): 'open' | 'leave' {
  if (policy === 'layer-only') return 'leave';
  if (allowsReference(policy, reference)) return 'open';
  throw deniedReference(reference, typeof policy === 'function' ? 'the caller' : `references: '${policy}'`);
}

/** A name without any directory part. Both separators count: the image may have been made elsewhere. */
function isBareName(name: string): boolean {
  return protocolPrefix(name) === undefined && !/[\\/]/.test(name) && !/^[a-zA-Z]:/.test(name) && name !== '..';
}

/** The error of a reference that may not be followed. @param decider who forbids it. */
export function deniedReference(reference: Omit<ResolvedReference, 'readOnly'>, decider: string): BlockError {
  return new BlockError(
    'REFERENCE_DENIED',
    `"${reference.from}": refers to ${reference.role} file "${reference.name}", which ${decider} does not allow; pass references: 'allow', 'same-directory', 'layer-only' or a function`,
    {
      reason: 'reference.denied',
      details: {
        name: reference.name,
        resolved: reference.resolved,
        from: reference.from,
        role: reference.role,
      },
    },
  );
}
