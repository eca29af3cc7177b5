/** The testing face: what people who write stores and formats of their own try them on. Needs no test framework: `describe` and `it` are
 *  passed in, failures are thrown. Nothing here does anything when it is imported. */

export { ALL_RULES, type SafetyRules } from './core/safety.ts';
export { type CrashReport, type CrashTestOptions, runCrash } from './testing/crash.ts';
export { type Fault, type FaultRule, FaultStore } from './testing/fault-store.ts';
export {
  createByDriver,
  type DriverUnderTest,
  type FormatAbilities,
  type FormatSuiteOptions,
  formatConformance,
  type ImageUnderTest,
  type OpenBacking,
} from './testing/format-suite.ts';
export { type LateOptions, LateStore } from './testing/late-store.ts';
export {
  type FormatUnderTest,
  findViolation,
  type GuestOptions,
  type GuestWeights,
  ModelFailure,
  type ModelOptions,
  type ModelReport,
  type OpenedUnderTest,
  type OpenUnderTest,
  runModel,
} from './testing/model.ts';
export { noise, seededRandom } from './testing/random.ts';
export {
  type CrashOptions,
  crashImage,
  durableEntries,
  type Keep,
  type LogEntry,
  type LoggedKind,
  type RecordingOptions,
  RecordingStore,
  type ReplayOptions,
  replay,
  WriteLog,
} from './testing/recording-store.ts';
export {
  type StoreSuiteOptions,
  type StoreUnderTest,
  storeConformance,
  type TestContextLike,
  type TestFramework,
} from './testing/store-suite.ts';
