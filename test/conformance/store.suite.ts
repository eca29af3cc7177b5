/** The store suite under vitest. */
import { describe, it } from 'vitest';
import { type StoreSuiteOptions, storeConformance } from '../../src/testing/store-suite.ts';

export function storeSuite(options: Omit<StoreSuiteOptions, 'describe' | 'it'>): void {
  storeConformance({ describe, it, ...options });
}
