/** The formats that can be fuzzed, in the order in which they are. Imported by what fuzzes only. */
import type { FuzzFormat } from '../core/fuzz.ts';
import { addCowFuzz } from './add-cow/fuzz.ts';
import { cowFuzz } from './cow/fuzz.ts';
import { luksFuzz } from './luks/fuzz.ts';
import { qcow2Fuzz } from './qcow2/fuzz.ts';

export const ALL_FUZZ_FORMATS: readonly FuzzFormat[] = [qcow2Fuzz, cowFuzz, addCowFuzz, luksFuzz];
