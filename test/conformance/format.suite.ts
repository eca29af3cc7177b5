/** The format suite under vitest. */
import { describe, it } from 'vitest';
import { type FormatSuiteOptions, formatConformance } from '../../src/testing/format-suite.ts';

export function formatSuite(options: Omit<FormatSuiteOptions, 'describe' | 'it'>): void {
  formatConformance({ describe, it, ...options });
}
