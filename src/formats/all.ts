/** All formats, in probe order: the first of equal scores wins. Imported by the faces only. */
import type { FormatDriver } from '../core/format.ts';
import { addCow } from './add-cow/driver.ts';
import { cow } from './cow/driver.ts';
import { luks } from './luks/driver.ts';
import { qcow2 } from './qcow2/driver.ts';
import { raw } from './raw/driver.ts';

export const ALL_FORMATS: readonly FormatDriver[] = [qcow2, luks, addCow, cow, raw];
