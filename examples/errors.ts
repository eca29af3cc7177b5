/** What a program does with errors: it looks at `code`, at `reason` where it must know exactly, and at `details` for the facts. */
import { isBlockError, openImage } from 'cowdisk';

async function why(name: string): Promise<string> {
  try {
    await using disk = await openImage(name);
    return `opened, ${disk.virtualSize} bytes`;
  } catch (error) {
    if (!isBlockError(error)) throw error;
    const { code, reason, details } = error;
    return code === 'REFERENCE_DENIED' ? `${reason}: ${String(details.name)}` : `${code}, ${reason}`;
  }
}

console.log(await why('samples/base.qcow2'));
console.log(await why('samples/overlay.qcow2'));
console.log(await why('nothing.qcow2'));

// Prints:
// opened, 16777216 bytes
// reference.denied: base.qcow2
// NOT_FOUND, system
