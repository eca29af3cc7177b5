/** Every filter there is. A filter is found by its name; the order has no meaning. */
import type { FilterDriver } from '../core/filter.ts';

export const ALL_FILTERS: readonly FilterDriver[] = [];
