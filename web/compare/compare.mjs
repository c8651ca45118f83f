/** The dialog in which two files are compared: what their headers say at once, what their weights say once measured. */

import { adoptStyle, make, makeButton } from "../shared/dom.mjs";
import { makeDialog } from "../report/dialog.mjs";
import { heading } from "../report/grid.mjs";
import { isAbort, measure, tellCosine } from "../report/measure.mjs";
import { Measuring } from "../report/measuring.mjs";
import { ask, Refusal, whenServerIsBack } from "../shared/server.mjs";
import { asSentence, say, tell } from "../i18n/words.mjs";
import "../i18n/more.mjs";
import { energyParts } from "./energy.mjs";
import { layerMaps } from "./layers.mjs";

await adoptStyle("./compare.css", import.meta.url);

const MAX_LEFT = 300; // modules listed that could not be measured

/**
 * @typedef {{verdict: string, one_model: boolean, facts: Record<string, [string, string]>,
 *   networks: import("./layers.mjs").Network[], translations: import("../i18n/words.mjs").Translations}} Comparison what the route tells
 */

/**
 * @param {string} file as the loras folders list it: A
 * @param {string} other B
 * @returns {Promise<void>}
 */
export async function openComparison(file, other) {
  const { dialog, closed } = makeDialog(say("compareTitle", { a: file, b: other }));
  dialog.classList.add("locksmith-compare");
  const body = make("div", "locksmith-details-body", make("p", "locksmith-quiet", say("detailsReading")));
  body.tabIndex = 0;
  const verdict = make("p", "");
  dialog.append(headOf(dialog, verdict), body);
  (document.querySelector(".locksmith-details:popover-open") ?? document.body).append(dialog); // which stays open
  dialog.showPopover();
  let isTold = false;
  const fill = async () => {
    if (isTold) return;
    try {
      const found = /** @type {Comparison} */ (await ask("compare", { name: file, other }, closed));
      if (closed.aborted || isTold) return;
      isTold = true;
      verdict.textContent = tell(found.verdict, found.translations);
      body.replaceChildren(...partsOf(found, { name: file, other }, closed));
    } catch (fault) {
      if (isAbort(fault)) return;
      body.replaceChildren(make("p", "locksmith-caution", fault instanceof Refusal ? fault.message : String(fault)));
    }
  };
  whenServerIsBack(() => void fill(), closed);
  await fill();
}

/**
 * @param {HTMLDialogElement} dialog
 * @param {HTMLElement} verdict
 */
function headOf(dialog, verdict) {
  const close = makeButton("locksmith-copy", say("detailsClose"), () => dialog.hidePopover());
  close.autofocus = true;
  const names = make("div", "locksmith-names", make("h2", "", say("compare")));
  return make("header", "locksmith-details-head", make("div", "locksmith-top", names, close), verdict);
}

/**
 * @param {Comparison} found
 * @param {{name: string, other: string}} question
 * @param {AbortSignal} closed
 * @returns {HTMLElement[]}
 */
function partsOf(found, question, closed) {
  const facts = factTable(found);
  if (!found.networks.length) return [facts];
  const sums = make("ul", "");
  const [maps, energy, left] = [make("div", ""), make("div", ""), make("div", "")];
  maps.append(layerMaps(found.networks, found.translations));
  const measuring = new Measuring(
    async (progress, signal) => {
      const measured = await measure(question, progress, signal);
      sums.replaceChildren(...sumsOf(measured));
      maps.replaceChildren(layerMaps(found.networks, found.translations, measured));
      energy.replaceChildren(...energyParts(found.networks, measured));
      left.replaceChildren(...leftOut(measured));
      measuring.done();
    },
    closed,
    true
  );
  void measuring.start();
  const heads = [make("h3", "", say("compareLayers"))];
  return [facts, measuring.element, sums, ...heads, maps, energy, left];
}

/** @param {Comparison} found */
function factTable({ facts, translations }) {
  const said = (/** @type {string} */ text) => tell(text, translations);
  const head = make("tr", "", make("td", ""), ...["A", "B"].map((side) => heading("col", side)));
  for (const [place, side] of [[1, "a"], [2, "b"]]) head.cells[Number(place)].className = `locksmith-side-${side}`;
  const rows = Object.entries(facts)
    .filter(([, pair]) => pair.some(Boolean))
    .map(([label, pair]) => make("tr", "", heading("row", said(label)), ...pair.map((text) => make("td", "", said(text)))));
  return make("table", "locksmith-facts-of-two", make("thead", "", head), make("tbody", "", ...rows));
}

/**
 * How alike they are as a whole.
 *
 * @param {import("../report/measure.mjs").Measured} measured
 */
function sumsOf({ cosine, norm_a: a, norm_b: b }) {
  const alike = say("compareCosine", { cosine: cosine === null ? say("notKnown") : tellCosine(cosine) });
  return [alike, say("compareNorms", { a: digits(a), b: digits(b) })].map((text) => make("li", "", text));
}

/** @param {number | null} number */
function digits(number) {
  return number === null ? say("notKnown") : number.toLocaleString(undefined, { maximumSignificantDigits: 3 });
}

/**
 * What could not be measured, and why.
 *
 * @param {import("../report/measure.mjs").Measured} measured
 */
function leftOut({ left_out: left, translations }) {
  if (!left.length) return [];
  const rows = left.slice(0, MAX_LEFT).map(({ file, module, reason }) => {
    return make("li", "", `${file.toUpperCase()}: `, make("code", "", module), ` ${asSentence(tell(reason, translations))}`);
  });
  if (left.length > MAX_LEFT) rows.push(make("li", "", say("detailsMore", { count: left.length - MAX_LEFT })));
  return [make("details", "", make("summary", "", say("compareLeft", { count: left.length })), make("ul", "", ...rows))];
}
