/** The cells of a row of the library: blank where nothing is known. */

import { make, makeButton } from "../shared/dom.mjs";
import { pictureOf } from "../shared/server.mjs";
import { makeMark, orBlank, paintMark, tellSize, tellState } from "./words.mjs";
import { say } from "../i18n/words.mjs";

/** @typedef {import("./rows.mjs").Row} Row */
/** @typedef {import("./columns.mjs").Column} Column */

/** What the text of a cell is. @type {Record<string, (row: Row) => string>} */
const TEXTS = {
  model: (row) => orBlank(row.model),
  trainer: (row) => (row.error ? "" : orBlank(row.trainer)),
  kind: (row) => (row.error ? "" : row.kindNames.map(orBlank).filter(Boolean).join(", ")),
  rank: (row) => String(row.rank || ""),
  size: (row) => tellSize(row.bytes),
  words: (row) => row.words.join(", "),
};

/** @param {Column[]} columns */
export function makeCells(columns) {
  return columns.map(({ name, words }, index) => {
    const cell = make("div", `shelf-${name}`);
    cell.setAttribute("aria-colindex", String(index + 1)); // a narrow list leaves one out
    cell.dataset.label = say(words);
    if (name === "name") cell.append(make("bdi", ""), make("bdi", "shelf-faint"), make("bdi", "shelf-faint"));
    if (name === "loads") cell.append(makeMark(""), make("span", ""));
    return cell;
  });
}

/**
 * @param {HTMLElement[]} cells
 * @param {Row} row
 * @param {Column[]} columns
 * @param {boolean} grouped then the folder stands above
 */
export function fillRow(cells, row, columns, grouped) {
  const hasWords = columns.some(({ name }) => name === "words");
  columns.forEach(({ name }, index) => {
    const cell = cells[index];
    if (name === "name") {
      cell.title = row.file;
      cell.children[0].textContent = row.name;
      cell.children[1].textContent = hasWords ? TEXTS.words(row) : ""; // a narrow list has no other place for them
      cell.children[2].textContent = grouped ? "" : row.folder;
    } else if (name === "picture") {
      if (cell.dataset.file !== row.file) cell.replaceChildren();
      cell.dataset.file = row.file;
    } else if (name === "loads") {
      fillState(cell, row);
    } else {
      const text = TEXTS[name](row);
      cell.textContent = text;
      cell.title = text && `${cell.dataset.label}: ${text}`;
      cell.toggleAttribute("data-blank", !text);
    }
  });
}

/**
 * @param {HTMLElement} cell
 * @param {Row} row
 */
function fillState(cell, row) {
  const told = tellState(row);
  paintMark(/** @type {HTMLElement} */ (cell.children[0]), row.state);
  cell.children[1].textContent = told;
  cell.title = row.error || [told, row.contradiction, ...row.cautions, ...row.gains, ...row.losses].filter(Boolean).join("\n");
}

/**
 * What is not worth asking for while a row flies by.
 *
 * @param {HTMLElement[]} cells
 * @param {Row} row
 * @param {Column[]} columns
 */
export function settleRow(cells, row, columns) {
  const cell = cells[columns.findIndex(({ name }) => name === "picture")];
  if (cell && row.has_picture && !cell.firstChild) cell.append(pictureOf(row.file, "shelf-thumb"));
}

/**
 * @param {HTMLElement} cell
 * @param {import("./rows.mjs").Folder} folder
 * @param {() => void} repair
 */
export function fillFolder(cell, folder, repair) {
  const counts = { count: folder.count.toLocaleString(), problems: folder.problems.toLocaleString() };
  const told = make("span", "shelf-faint", say(folder.problems ? "libraryFolderProblems" : "libraryFolderFiles", counts));
  const name = folder.folder || say("libraryNoFolder");
  const parts = [make("i", `pi ${folder.isClosed ? "pi-chevron-right" : "pi-chevron-down"}`), make("bdi", "", name), told];
  cell.replaceChildren(...parts, ...(folder.problems ? [makeRepair(name, repair)] : []));
  cell.title = name;
}

/**
 * @param {string} folder
 * @param {() => void} repair
 */
function makeRepair(folder, repair) {
  const button = makeButton("shelf-link", say("repairThese"), repair);
  button.title = say("repairTheseIn", { folder });
  button.setAttribute("aria-label", button.title);
  button.addEventListener("click", (event) => event.stopPropagation()); // it neither closes the folder nor chooses it
  button.tabIndex = -1; // the list has the keys; they search for the folder, and repair all
  return button;
}
