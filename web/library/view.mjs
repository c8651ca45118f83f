/** The library page: search, filters, order, the list, and the details of the chosen file. */

import { app } from "../../../scripts/app.js";
import { make, makeButton } from "../shared/dom.mjs";
import { keepChoice, makeSelect, offer, recallChoice } from "./choice.mjs";
import { LibraryDetails } from "./details.mjs";
import { LibraryList } from "./list.mjs";
import { addInTheMiddle, carry } from "./place.mjs";
import { EVERYTHING, pick, sorted, SORT_NAMES } from "./rows.mjs";
import { dressIcon, makeIcon, makeMark, paintMark, tellSize, tellState, tellUntold } from "./words.mjs";
import { say } from "../i18n/words.mjs";
import "../i18n/more.mjs";

/** @typedef {import("./rows.mjs").Row} Row */
/** @typedef {import("./rows.mjs").Choice} Choice */

const WIDE_PAGE = 900; // pixels from which the details stand beside the list
const FILTERS = /** @type {const} */ ([
  ["model", "libraryModels"],
  ["trainer", "libraryTrainers"],
  ["kind", "libraryKinds"],
  ["state", "libraryStates"],
]);
const COLUMNS = ["name", "model", "trainer", "kind", "rank", "size", "loads"];
/** @type {Record<string, string>} */
const SORT_WORDS = {
  name: "libraryName", model: "libraryModel", trainer: "libraryTrainer", kind: "libraryKind", rank: "libraryRank",
  size: "librarySize", loads: "libraryState", changed: "libraryChanged",
}; // prettier-ignore

export class LibraryView {
  search = make("input", "shelf-field shelf-search");
  filters = FILTERS.map(([filter, words]) => makeSelect(say(words), (value) => this.choose({ [filter]: value })));
  order = makeSelect(say("librarySort"), (value) => this.choose({ sort: value }));
  turn = makeIcon("", "", () => this.choose({ descending: !this.choice.descending }));
  titles = COLUMNS.map((column) => this.makeTitleOf(column));
  status = make("span", "");
  progress = make("progress", "");
  clear = makeButton("shelf-link", say("libraryClear"), () => this.clearAll());
  fault = make("p", "shelf-fault");
  empty = make("p", "shelf-empty shelf-faint");

  /**
   * @param {import("./shelf.mjs").Shelf} shelf
   * @param {string} style the text of library.css
   */
  constructor(shelf, style) {
    this.shelf = shelf;
    this.choice = recallChoice();
    /** @type {Row[] | undefined} the rows `inOrder` was made of */
    this.ordered = undefined;
    /** @type {Row[]} */
    this.inOrder = [];
    this.orderedBy = "";
    this.wanted = "";
    this.list = new LibraryList(this.makeManner(), this.makeHead());
    this.list.element.setAttribute("aria-label", say("library"));
    this.details = new LibraryDetails({
      onAdd: (file) => void addInTheMiddle(file),
      onClose: () => this.closeDetails(),
      onSaved: () => void app.reloadNodeDefs().catch(() => this.shelf.refresh()), // else the tab has it refreshed
      dialects: () => this.shelf.dialects,
    });
    const main = make("div", "locksmith-library-main", this.list.element, this.empty, this.details.element);
    const above = [make("style", "", style), this.makeTitle(), this.makeTools(), this.makeStatus()];
    this.element = make("section", "locksmith-library", ...above, main);
    this.element.setAttribute("aria-label", say("library"));
    this.element.addEventListener("keydown", (event) => this.takeKey(event));
    this.observer = new ResizeObserver(() => main.classList.toggle("shelf-beside", main.clientWidth >= WIDE_PAGE));
    this.observer.observe(main);
  }

  /** Ask again for what the server did not tell while it was away. */
  recover() {
    void this.shelf.refresh();
    void this.details.recover();
  }

  /** Let go of the page. */
  end() {
    this.observer.disconnect();
    this.list.end();
    this.details.close();
    this.element.remove();
  }

  makeTitle() {
    const refresh = makeIcon("pi-refresh", say("libraryRefresh"), () => void this.shelf.refresh());
    return make("header", "locksmith-library-title", make("h2", "", say("library")), refresh);
  }

  makeTools() {
    this.search.type = "search";
    this.search.placeholder = say("librarySearch");
    this.search.setAttribute("aria-label", say("librarySearch"));
    this.search.value = this.choice.query;
    this.search.addEventListener("input", () => this.choose({ query: this.search.value }));
    this.search.addEventListener("keydown", (event) => {
      if (event.key !== "ArrowDown") return;
      event.preventDefault();
      this.list.element.focus();
      if (this.list.active < 0) this.list.move(0);
    });
    this.order.append(...SORT_NAMES.map((sort) => new Option(say("librarySortBy", { column: say(SORT_WORDS[sort]) }), sort)));
    return make("div", "locksmith-library-tools", this.search, ...this.filters, this.order, this.turn);
  }

  makeStatus() {
    this.status.setAttribute("role", "status");
    this.progress.setAttribute("aria-label", say("libraryScan"));
    this.fault.setAttribute("role", "alert");
    return make("div", "locksmith-library-status", this.status, this.progress, this.clear, this.fault);
  }

  /** @param {string} column */
  makeTitleOf(column) {
    const button = makeButton("", say(SORT_WORDS[column]), () => {
      this.choose({ sort: column, descending: this.choice.sort === column && !this.choice.descending });
    });
    const title = make("div", `shelf-${column}`, button);
    title.setAttribute("role", "columnheader");
    return title;
  }

  makeHead() {
    const head = make("div", "shelf-list-head", ...this.titles);
    head.setAttribute("role", "row");
    head.setAttribute("aria-rowindex", "1");
    return head;
  }

  /** @returns {import("./list.mjs").Manner} */
  makeManner() {
    return {
      columns: COLUMNS.length,
      makeCells: () => COLUMNS.map((column) => make("div", `shelf-${column}`)),
      fill: fillRow,
      onOpen: (row, byKey) => {
        void this.details.show(row, byKey);
        this.list.reveal(); // the details take a part of its room
      },
      onMove: (row) => void (this.details.file && this.details.show(row)),
      onDrag: (event, row) => carry(event, row.file),
    };
  }

  /**
   * Go to a file, and tell its details; what is searched or filtered gives way where it is not in it.
   *
   * @param {string} file
   */
  reveal(file) {
    this.wanted = file;
    const isKnown = this.shelf.rows.some((row) => row.file === file);
    if (!isKnown && this.shelf.asked && !this.shelf.running) void this.shelf.refresh();
    this.update();
  }

  /** @param {Row[]} picked */
  goToWanted(picked) {
    const file = this.wanted;
    const row = this.shelf.rows.find((one) => one.file === file);
    if (!row) return;
    if (!picked.includes(row)) return this.clearAll(file);
    this.wanted = "";
    this.list.move(picked.indexOf(row));
    void this.details.show(row);
    this.list.reveal();
    this.list.element.focus();
  }

  /** @param {Partial<Choice>} change */
  choose(change) {
    this.wanted = "";
    this.choice = { ...this.choice, ...change };
    keepChoice(this.choice);
    this.list.scrollTo(0);
    this.update();
  }

  /** @param {string} [wanted] a file to go to then */
  clearAll(wanted = "") {
    const { sort, descending } = this.choice;
    this.search.value = "";
    this.choose({ ...EVERYTHING, sort, descending });
    if (wanted) this.reveal(wanted);
    else this.search.focus();
  }

  closeDetails() {
    this.details.close();
    this.list.element.focus();
  }

  /** @param {KeyboardEvent} event */
  takeKey(event) {
    const modified = event.ctrlKey || event.metaKey || event.altKey;
    if (event.key === "Escape" && this.details.file) this.closeDetails();
    if (!modified) event.stopPropagation(); // letters and Delete are shortcuts of the canvas
  }

  /** Show what the shelf has now, as it is wanted. */
  update() {
    const { rows } = this.shelf;
    const order = `${this.choice.sort} ${this.choice.descending}`;
    if (rows !== this.ordered || order !== this.orderedBy) {
      this.inOrder = sorted(rows, this.choice);
      [this.ordered, this.orderedBy] = [rows, order];
    }
    const { picked, counts } = pick(this.inOrder, this.choice);
    this.list.show(picked);
    this.tellOrder();
    FILTERS.forEach(([filter, words], index) => {
      offer(this.filters[index], say(words), counts[filter], this.choice[filter], filter === "state");
    });
    this.tellStatus(picked.length);
    if (this.wanted) this.goToWanted(picked);
  }

  tellOrder() {
    const { sort, descending } = this.choice;
    this.titles.forEach((title, index) => {
      title.setAttribute("aria-sort", COLUMNS[index] !== sort ? "none" : descending ? "descending" : "ascending");
    });
    this.order.value = sort;
    const [icon, words] = descending ? ["pi-sort-amount-down", "libraryDescending"] : ["pi-sort-amount-up-alt", "libraryAscending"];
    dressIcon(this.turn, icon, say(words));
  }

  /** @param {number} shown */
  tellStatus(shown) {
    const { rows, running, done, total, fault } = this.shelf;
    const numbers = Object.entries({ shown, all: rows.length, done, total }).map(([name, value]) => [name, value.toLocaleString()]);
    const part = Object.fromEntries(numbers);
    const counts = say(shown === rows.length ? "libraryAll" : "librarySome", part);
    const text = running && !fault ? `${counts} - ${say("libraryProgress", part)}` : counts;
    if (this.status.textContent !== text) this.status.textContent = text;
    this.progress.hidden = !running;
    this.progress.max = total || 1;
    this.progress.value = done;
    const { sort: _, descending: __, ...narrowing } = this.choice;
    this.clear.hidden = !Object.values(narrowing).some(Boolean);
    this.fault.textContent = fault;
    this.empty.hidden = shown > 0;
    this.empty.textContent = rows.length ? say("libraryNoMatch") : running || fault ? "" : say("libraryEmpty");
    this.list.element.hidden = !shown;
  }
}

/**
 * @param {HTMLElement[]} cells in the order of COLUMNS
 * @param {Row} row
 */
function fillRow(cells, row) {
  const [name, model, trainer, kind, rank, size, loads] = cells;
  if (!name.firstChild) name.append(make("bdi", ""), make("bdi", "shelf-faint"));
  name.title = row.file;
  name.children[0].textContent = row.name;
  name.children[1].textContent = row.folder;
  model.textContent = tellUntold(row.model);
  trainer.textContent = row.error ? "" : tellUntold(row.trainer);
  kind.textContent = row.error ? "" : row.kindNames.map(tellUntold).join(", ");
  rank.textContent = String(row.rank || "");
  size.textContent = tellSize(row.bytes);
  if (!loads.firstChild) loads.append(makeMark(row), make("span", ""));
  const told = tellState(row);
  paintMark(/** @type {HTMLElement} */ (loads.children[0]), row);
  loads.children[1].textContent = told;
  loads.title = row.error || [told, row.contradiction, ...row.cautions, ...row.gains, ...row.losses].filter(Boolean).join("\n");
}
