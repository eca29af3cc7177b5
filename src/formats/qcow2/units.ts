/** Brands that keep positions in the guest disk and positions in a host file apart. Free at run time.
 *  Spec: qcow2, "Guest clusters" and "Host clusters". Inside a function plain numbers are fine; exported parameters say which they mean. */

declare const guest: unique symbol;
declare const host: unique symbol;

/** Bytes from the start of the virtual disk. */
export type GuestOffset = number & { readonly [guest]: true };

/** Bytes from the start of the image file, or of the external data file where there is one. */
export type HostOffset = number & { readonly [host]: true };

export function guestOffset(bytes: number): GuestOffset {
  return bytes as GuestOffset;
}

export function hostOffset(bytes: number): HostOffset {
  return bytes as HostOffset;
}
