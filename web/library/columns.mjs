/** The columns of the library: which there are, which a reader has chosen, and the field in which that is done. */

import { make, makeButton } from "../shared/dom.mjs";
import { fromStorage, toStorage } from "../shared/stored.mjs";
import { dressIcon, makeIcon } from "./words.mjs";
import { say } from "../i18n/words.mjs";

const KEPT = "loralocksmith.library.columns";

/**
 * `width`: as a track of the grid in a wide list. `kept`: it cannot be left out.
 *
 * @typedef {{name: string, words: string, width: string, kept?: boolean}} Column
 */

/** @type {readonly Column[]} in the order they stand in */
export const COLUMNS = [
  { name: "picture", words: "libraryPicture", width: "32px" },
  { name: "name", words: "libraryName", width: "minmax(0, 3fr)", kept: true },
  { name: "model", words: "libraryModel", width: "minmax(0, 1.4fr)" },
  { name: "trainer", words: "libraryTrainer", width: "minmax(0, 1.2fr)" },
  { name: "kind", words: "libraryKind", width: "minmax(0, 0.7fr)" },
  { name: "rank", words: "libraryRank", width: "52px" },
  { name: "size", words: "librarySize", width: "60px" },
  { name: "words", words: "libraryTriggers", width: "minmax(0, 1.6fr)" },
  { name: "loads", words: "libraryState", width: "minmax(0, 1.8fr)", kept: true },
];

const LEFT_OUT = ["trainer"]; // at first

/** @returns {Column[]} those that were chosen in this browser */
export function recallColumns() {
  const kept = fromStorage("localStorage", KEPT);
  const left = Array.isArray(kept) ? kept : LEFT_OUT;
  const isLeft = (/** @type {Column} */ column) => !column.kept && left.includes(column.name);
  return COLUMNS.filter((column) => !isLeft(column));
}

/** @param {Column[]} columns */
function keepColumns(columns) {
  // What is left out is kept, so that a column of a later version shows.
  toStorage("localStorage", KEPT, COLUMNS.filter((column) => !columns.includes(column)).map(({ name }) => name));
}

/**
 * The button that opens the choice, and the choice.
 *
 * @param {(columns: Column[]) => void} onChange
 */
export function makeColumnChoice(onChange) {
  const boxes = COLUMNS.filter(({ kept }) => !kept).map(makeBox);
  const all = makeButton("shelf-link", say("libraryAllColumns"), () => {
    for (const { box } of boxes) box.checked = true;
    take();
  });
  const panel = make("div", "shelf-columns", ...boxes.map(({ label }) => label), all);
  panel.setAttribute("role", "group");
  panel.setAttribute("aria-label", say("libraryColumns"));
  panel.hidden = true;
  const open = makeIcon("", "", () => turn(panel.hidden));
  dressIcon(open, "pi-sliders-h", say("libraryColumns"));
  const place = make("div", "shelf-columns-place", open, panel);
  place.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || panel.hidden) return;
    event.stopPropagation();
    turn(false);
    open.focus();
  });
  place.addEventListener("focusout", ({ relatedTarget }) => {
    if (relatedTarget instanceof Node && !place.contains(relatedTarget)) turn(false);
  });
  panel.addEventListener("change", take);
  let opened = new AbortController();
  turn(false);
  return place;

  /** @param {boolean} isOpen */
  function turn(isOpen) {
    panel.hidden = !isOpen;
    open.setAttribute("aria-expanded", String(isOpen));
    opened.abort();
    if (!isOpen) return;
    opened = new AbortController();
    // What is pressed may take no focus.
    const leave = (/** @type {Event} */ { target }) => target instanceof Node && !place.contains(target) && turn(false);
    document.addEventListener("pointerdown", leave, { capture: true, signal: opened.signal });
    boxes[0].box.focus();
  }

  function take() {
    const off = boxes.filter(({ box }) => !box.checked).map(({ name }) => name);
    const columns = COLUMNS.filter(({ name }) => !off.includes(name));
    keepColumns(columns);
    onChange(columns);
  }
}

/** @param {Column} column */
function makeBox({ name, words }) {
  const box = make("input", "");
  box.type = "checkbox";
  box.checked = recallColumns().some((column) => column.name === name);
  return { name, box, label: make("label", "", box, say(words)) };
}
