/** The safety rules by name. Every rule is on, always; the crash and concurrency tests switch one off at a time and must then fail,
 *  which proves that they would notice its loss. Data only. */

export interface SafetyRules {
  /** Overlapping allocating writes queue. */
  readonly rangeLock: boolean;
  /** `exclusive` waits for running requests and holds new ones. */
  readonly drain: boolean;
  /** Dropped host space is reused only when no older request can touch it and the drop is durable. */
  readonly deferredFree: boolean;
  /** Refcounts are durable before a table that refers to what they count. */
  readonly refcountsFirst: boolean;
  /** Data is durable before a table that refers to it. */
  readonly dataFirst: boolean;
  /** One table is loaded once, however many ask. */
  readonly singleFlight: boolean;
  /** Copy-on-write edges are read through the node's own mapping, not from the backing file. */
  readonly edgeFromOwnMapping: boolean;
  /** Tables are copied when their write-back begins: later changes wait for their own orders. */
  readonly copyAtWriteBack: boolean;
}

export const ALL_RULES: SafetyRules = {
  rangeLock: true,
  drain: true,
  deferredFree: true,
  refcountsFirst: true,
  dataFirst: true,
  singleFlight: true,
  edgeFromOwnMapping: true,
  copyAtWriteBack: true,
};
