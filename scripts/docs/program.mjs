/** The sources as the compiler sees them: one program for all pages. */
import { join } from 'node:path';
import ts from 'typescript';

/** @param root directory of the project. */
export function loadProgram(root) {
  const file = join(root, 'tsconfig.build.json');
  const { config, error } = ts.readConfigFile(file, ts.sys.readFile);
  if (error !== undefined) throw new Error(ts.flattenDiagnosticMessageText(error.messageText, '\n'));
  const parsed = ts.parseJsonConfigFileContent(config, ts.sys, root);
  const options = {
    ...parsed.options,
    incremental: false,
    tsBuildInfoFile: undefined,
    sourceMap: false,
    declarationMap: false,
    emitDeclarationOnly: true,
    removeComments: false,
  };
  return ts.createProgram(parsed.fileNames, options);
}

export const GENERATED = 'Made from the sources by `npm run docs`; do not edit.';

/** Text for a cell of a Markdown table. */
export function cell(text) {
  return text.replaceAll('|', '\\|').replaceAll('\n', ' ');
}
