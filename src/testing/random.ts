/** Seeded randomness for tests, under the name that tests have for it; base/random.ts owns it. */
export { below, noise, seededRandom } from '../base/random.ts';
