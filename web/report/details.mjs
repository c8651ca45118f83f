/** The dialog with everything known of a file: what became of its keys, what it trains, its trigger words and metadata. */

import { copyButton, make, makeButton } from "../shared/dom.mjs";
import { chooseOther } from "../compare/choose.mjs";
import { makeDialog } from "./dialog.mjs";
import { trainedMap } from "./trained.mjs";
import { makeBadge } from "./badge.mjs";
import { ask, pictureOf, whenServerIsBack } from "../shared/server.mjs";
import { asSentence, asSentences, say, tell } from "../i18n/words.mjs";
import "../i18n/more.mjs";

/** @typedef {import("./outcome.mjs").Outcome} Outcome */

const MAX_ROWS = 300;
const MAX_CAUTIONS = 5; // above the rest, in which they all are

/**
 * Show everything; of a file in a loras folder also what a run does not tell.
 *
 * @param {string} title of the node
 * @param {Outcome} outcome
 * @param {string} text the report, to be copied
 * @returns {HTMLDialogElement}
 */
export function openDetails(title, outcome, text) {
  const { dialog, closed } = makeDialog(say("detailsTitle", { node: title }));
  const [words, more] = [make("div", ""), make("div", "")];
  const run = runParts(outcome, closed);
  const body = make("div", "locksmith-details-body", words, ...run, more, folded(say("detailsText"), make("pre", "", text)));
  body.tabIndex = 0;
  dialog.append(headOf(dialog, title, outcome, text), body);
  document.body.append(dialog);
  dialog.showPopover();
  if (!outcome.inspection && !outcome.file) return dialog;
  more.append(make("p", "locksmith-quiet", say("detailsReading")));
  let isTold = false;
  const fill = async () => {
    if (isTold) return;
    const found = await askFor(outcome, closed);
    if (closed.aborted || isTold) return;
    isTold = typeof found !== "string";
    if (isTold) words.append(...wordParts(found, dialog));
    more.replaceChildren(...(isTold ? fileParts(found, outcome, closed) : [make("p", "locksmith-quiet", found)]));
  };
  whenServerIsBack(() => void fill(), closed);
  void fill();
  return dialog;
}

/**
 * What the file itself tells, or why that is not to be had.
 *
 * @param {Outcome} outcome
 * @param {AbortSignal} signal
 * @returns {Promise<any>}
 */
async function askFor({ inspection, file, translations }, signal) {
  if (inspection) return { ...inspection, translations };
  try {
    const answer = await ask("file", { name: file, full: 1 }, signal);
    if (!answer.inspection) return asSentence(tell(answer.error, answer.translations));
    return { ...answer.inspection, translations: answer.translations };
  } catch (fault) {
    return fault instanceof Error ? fault.message : "";
  }
}

/**
 * @param {HTMLDialogElement} dialog
 * @param {string} title
 * @param {Outcome} outcome
 * @param {string} text
 */
function headOf(dialog, title, outcome, text) {
  const copy = copyButton("locksmith-copy", say("copy"), text, dialog);
  copy.title = say("copyHint");
  const close = makeButton("locksmith-copy", say("detailsClose"), () => dialog.hidePopover());
  close.autofocus = true;
  const names = make("div", "locksmith-names", make("h2", "", title), make("span", "locksmith-quiet", outcome.file));
  const compare = outcome.file ? [makeCompare(outcome.file)] : [];
  const top = make("div", "locksmith-top", makeBadge(outcome), names, ...compare, copy, close);
  const cautions = outcome.cautions.map((caution) => make("p", "locksmith-caution", caution));
  const remedy = outcome.remedy ? [make("p", "", outcome.remedy)] : [];
  return make("header", "locksmith-details-head", top, make("p", "", outcome.verdict), ...remedy, ...cautions.slice(0, MAX_CAUTIONS));
}

/** @param {string} file */
function makeCompare(file) {
  const button = makeButton("locksmith-copy", say("compareWith"), () => void chooseOther(button, file));
  button.title = say("compareHint");
  return button;
}

/**
 * What the run told: how it was loaded, and what of it was not.
 *
 * @param {Outcome} outcome
 * @param {AbortSignal} closed
 * @returns {HTMLElement[]}
 */
function runParts(outcome, closed) {
  const { family, trainer, strength, acts, gains, notes, stockFails, categories, patterns, trained, untrained } = outcome;
  const facts = [
    [say("detailsFamily"), family],
    [say("detailsTrainer"), trainer],
    [say("detailsStrength"), strength],
    [say("detailsActs"), acts],
    ...categories.map(([category, count]) => [category[0].toUpperCase() + category.slice(1), say("detailsKeys", { count })]),
  ];
  const stock = stockFails.map((why) => say("detailsStockFails", { why }));
  return [
    ...part(say("detailsLoads"), table(facts), list([...new Set([...gains, ...notes, ...stock])])),
    ...part(say("detailsUnplaced"), patternTable(patterns)),
    ...trainedPart(trained, outcome, closed),
    ...part(say("detailsUntrained"), list(untrained)),
  ];
}

/**
 * @param {any} inspection
 * @param {HTMLElement} dialog
 * @returns {HTMLElement[]}
 */
function wordParts({ file, metadata, translations }, dialog) {
  const words = metadata.trigger_words.slice(0, MAX_ROWS).map((/** @type {any} */ { word, evidence }) => {
    const button = copyButton("locksmith-word", word, word, dialog);
    button.title = [say("detailsCopyWord"), ...evidence.map((/** @type {string} */ text) => tell(text, translations))].join("\n");
    return button;
  });
  const picture = pictureOf(file, "locksmith-picture");
  return [picture, ...part(say("detailsTrigger"), words.length ? make("p", "locksmith-words", ...words) : null)];
}

/**
 * @param {any} inspection
 * @param {Outcome} outcome of the run, which knows the model
 * @param {AbortSignal} closed
 * @returns {HTMLElement[]}
 */
function fileParts({ metadata, family, trained, health, kinds, ranks, dtypes, beside, translations }, outcome, closed) {
  const said = (/** @type {string} */ text) => tell(text, translations);
  const facts = [
    [say("detailsAdapters"), counted(kinds)],
    [say("heatRank"), Object.keys(ranks).join(", ")],
    [say("detailsTypes"), counted(dtypes)],
    [say("detailsAdvised"), beside?.strength ? say("detailsAdvisedBy", beside.strength) : ""],
  ];
  const isJudged = family.title || !outcome.family; // else only the run could tell what is odd
  const odd = (isJudged ? health : []).map((/** @type {any} */ { finding, meaning }) => asSentences(said(finding), said(meaning)));
  const sections = /** @type {[string, string[][]][]} */ (Object.entries(metadata.sections));
  return [
    ...(outcome.trained.length ? [] : trainedPart(trained, { ...outcome, translations }, closed)),
    ...part(say("detailsFile"), table(facts)),
    ...part(say("detailsHealth"), list(odd)),
    ...sections.flatMap(([title, rows]) => part(said(title), table(rows.map((row) => row.map(said))))),
    ...(metadata.unknown.length ? [folded(say("detailsOther"), table(metadata.unknown))] : []),
  ];
}

/**
 * @param {Outcome["trained"]} trained
 * @param {Outcome} outcome
 * @param {AbortSignal} closed
 */
function trainedPart(trained, { layerWeights: weights, translations, file }, closed) {
  return part(say("detailsTrained"), trained.length ? trainedMap(trained, { weights, translations }, file, closed) : null);
}

/** @param {Record<string, number>} counts */
function counted(counts) {
  return Object.entries(counts).map(([name, count]) => `${count} ${name}`).join(", ");
}

/**
 * A heading with what stands below it; nothing where nothing does.
 *
 * @param {string} title
 * @param {...(Node | null)} contents
 * @returns {any[]}
 */
function part(title, ...contents) {
  const present = contents.filter((content) => content !== null);
  return present.length ? [make("h3", "", title), ...present] : [];
}

/**
 * @param {string[][]} rows a heading and a text each; those without a text are left out
 */
function table(rows) {
  const told = rows.filter(([, text]) => text);
  if (!told.length) return null;
  return make("table", "", ...told.slice(0, MAX_ROWS).map(([name, text]) => make("tr", "", rowHead(name), make("td", "", text))));
}

/** @param {Outcome["patterns"]} patterns */
function patternTable(patterns) {
  if (!patterns.length) return null;
  const words = [say("detailsModule"), say("detailsCount"), say("detailsReason")];
  const head = words.map((word) => Object.assign(make("th", "", word), { scope: "col" }));
  const merged = mergeAlike(patterns);
  const rows = merged.slice(0, MAX_ROWS).map(({ name, keys, category, reason }) => {
    return make("tr", "", rowHead(name), make("td", "", String(keys)), make("td", "", say("detailsPattern", { category, reason })));
  });
  const left = merged.length - rows.length;
  if (left > 0) rows.push(make("tr", "", make("td", "", say("detailsMore", { count: left }))));
  return make("table", "locksmith-patterns", make("thead", "", make("tr", "", ...head)), make("tbody", "", ...rows));
}

/**
 * One row for neighbours that are without effect for one reason.
 *
 * @param {Outcome["patterns"]} patterns
 */
function mergeAlike(patterns) {
  const merged = /** @type {Outcome["patterns"]} */ ([]);
  for (const pattern of patterns) {
    const last = merged[merged.length - 1];
    if (last?.category !== pattern.category || last.reason !== pattern.reason) merged.push({ ...pattern });
    else Object.assign(last, { name: `${last.name}, ${pattern.name}`, keys: last.keys + pattern.keys });
  }
  return merged;
}

/** @param {string} text */
function rowHead(text) {
  return Object.assign(make("th", "", text), { scope: "row" });
}

/** @param {string[]} texts */
function list(texts) {
  return texts.length ? make("ul", "", ...texts.slice(0, MAX_ROWS).map((text) => make("li", "", text))) : null;
}

/**
 * @param {string} title
 * @param {Node | null} content
 */
function folded(title, content) {
  return make("details", "", make("summary", "", title), ...(content ? [content] : []));
}
