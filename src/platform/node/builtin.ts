/** Node's own modules, loaded when first needed: `node:zlib` and `node:worker_threads` cost milliseconds at start, and most commands
 *  use neither. */
type Builtins = {
  readonly 'node:crypto': typeof import('node:crypto');
  readonly 'node:zlib': typeof import('node:zlib');
  readonly 'node:worker_threads': typeof import('node:worker_threads');
  readonly 'node:os': typeof import('node:os');
  readonly 'node:fs': typeof import('node:fs');
};

const loaded = new Map<keyof Builtins, unknown>();

/** The module, loaded at once if it was not. */
export function builtin<K extends keyof Builtins>(name: K): Builtins[K] {
  let module = loaded.get(name) as Builtins[K] | undefined;
  if (module === undefined) {
    module = process.getBuiltinModule(name) as unknown as Builtins[K];
    loaded.set(name, module);
  }
  return module;
}
