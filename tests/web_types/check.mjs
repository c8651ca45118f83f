/** Prints what TypeScript finds wrong in a project, and each use of what the front end calls deprecated; ends with 1 if there is any. */

import { createRequire } from "node:module";
import path from "node:path";

const FRONT_END = "@comfyorg/comfyui-frontend-types";

const [packages, project] = process.argv.slice(2).map((place) => path.resolve(place));
const ts = createRequire(path.join(packages, "package.json"))("typescript");

const { options, fileNames, errors } = ts.getParsedCommandLineOfConfigFile(project, {}, { ...ts.sys, onUnRecoverableConfigFileDiagnostic: fail });
const service = ts.createLanguageService({
  ...ts.sys,
  useCaseSensitiveFileNames: () => ts.sys.useCaseSensitiveFileNames,
  getCompilationSettings: () => options,
  getScriptFileNames: () => fileNames,
  getScriptVersion: () => "1",
  getScriptSnapshot: (name) => (ts.sys.fileExists(name) ? ts.ScriptSnapshot.fromString(ts.sys.readFile(name)) : undefined),
  getDefaultLibFileName: ts.getDefaultLibFilePath,
});

const found = [...errors, ...service.getCompilerOptionsDiagnostics(), ...fileNames.flatMap(findingsIn)];
if (found.length) fail(...found);
console.log(`${fileNames.length} files agree with their types`);

function findingsIn(name) {
  const suggestions = service.getSuggestionDiagnostics(name).filter(isDeprecatedFrontEnd);
  return [...service.getSyntacticDiagnostics(name), ...service.getSemanticDiagnostics(name), ...suggestions];
}

/** The browser's own deprecated names are ours to judge; the front end's can be gone with its next version. */
function isDeprecatedFrontEnd({ reportsDeprecated, relatedInformation }) {
  return reportsDeprecated && relatedInformation?.some(({ file }) => file?.fileName.includes(FRONT_END));
}

function fail(...findings) {
  const host = { getCanonicalFileName: (name) => name, getCurrentDirectory: ts.sys.getCurrentDirectory, getNewLine: () => "\n" };
  console.log(ts.formatDiagnostics(findings, host));
  process.exit(1);
}
