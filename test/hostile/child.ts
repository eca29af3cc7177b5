/** The process that hostile cases run in: takes ranges of case numbers, says which one it begins and how each ended.
 *  Time is the processor's, not the clock's, so that a busy machine is no failure. */
import { createCodecs } from '../../src/codec/create.ts';
import { loadBases } from './bases.ts';
import { collectGarbage, exercise } from './exercise.ts';
import { exerciseFeatures } from './feature-exercise.ts';
import { Mutator, type Recipe } from './mutate.ts';

/** What the parent asks for. */
export interface Order {
  /** Of the bases. */
  readonly directory: string;
  readonly seed: number;
  /** Cases `[from, to)`, of the seed or of the list. */
  readonly from: number;
  readonly to: number;
  readonly recipes: readonly Recipe[] | undefined;
  /** `whole`: everything that every image must survive; `features`: a few of the things that can be done to one. */
  readonly suite: 'whole' | 'features';
}

/** What the child tells. */
export type Report =
  | { readonly type: 'begin'; readonly index: number }
  | {
      readonly type: 'end';
      readonly index: number;
      readonly recipe: Recipe;
      readonly steps: Readonly<Record<string, string>>;
      readonly failures: readonly string[];
      readonly milliseconds: number;
    }
  | { readonly type: 'done'; readonly peakBytes: number };

const strays: string[] = [];
const note = (error: unknown): void => {
  strays.push(`unhandled: ${error instanceof Error ? error.stack : String(error)}`);
};
process.on('unhandledRejection', note);
process.on('uncaughtException', note);

process.on('message', (order: Order) => {
  void serve(order);
});

async function serve({ directory, seed, from, to, recipes, suite }: Order): Promise<void> {
  const bases = loadBases(directory);
  const mutator = new Mutator(bases, seed);
  const codecs = createCodecs({ workers: 0 });
  for (let index = from; index < to; index++) {
    tell({ type: 'begin', index });
    collectGarbage();
    const recipe = recipes?.[index] ?? mutator.recipe(index);
    const start = process.cpuUsage();
    const { steps, failures } = await (suite === 'features' ? exerciseFeatures : exercise)(recipe, bases, codecs);
    // what nobody waits for fails after the turn that dropped it
    await new Promise((resolve) => setImmediate(resolve));
    const { user, system } = process.cpuUsage(start);
    const all = [...failures, ...strays.splice(0)];
    tell({ type: 'end', index, recipe, steps, failures: all, milliseconds: (user + system) / 1000 });
  }
  tell({ type: 'done', peakBytes: process.resourceUsage().maxRSS * 1024 });
  process.disconnect();
}

function tell(report: Report): void {
  process.send?.(report);
}
