/** The library page: search, filters, order, the list, and the details of the chosen file. */

import { app } from "../../../scripts/app.js";
import { make, makeButton } from "../shared/dom.mjs";
import { lazily } from "../shared/lazy.mjs";
import { compare } from "../compare/choose.mjs";
import { keepChoice, makeSelect, offer, recallChoice } from "./choice.mjs";
import { makeColumnChoice, recallColumns } from "./columns.mjs";
import { LibraryDetails } from "./details.mjs";
import { fillFolder, fillRow, makeCells, settleRow } from "./cells.mjs";
import { Legend } from "./legend.mjs";
import { LibraryList } from "./list.mjs";
import { addInTheMiddle, carry } from "./place.mjs";
import { EVERYTHING, inFolders, pick, sorted, SORT_NAMES } from "./rows.mjs";
import { dressIcon, makeIcon } from "./words.mjs";
import { say } from "../i18n/words.mjs";
import "../i18n/more.mjs";

/** @typedef {import("./rows.mjs").Row} Row */
/** @typedef {import("./rows.mjs").Choice} Choice */

/** Mending many files is loaded when it is first wanted. */
const loadRepair = /** @type {() => Promise<typeof import("./repair.mjs")>} */ (lazily("./repair.mjs", import.meta.url));

const WIDE_PAGE = 900; // pixels from which the details stand beside the list
const FILTERS = /** @type {const} */ ([
  ["model", "libraryModels"],
  ["trainer", "libraryTrainers"],
  ["kind", "libraryKinds"],
]);
/** @type {Record<string, string>} */
const SORT_WORDS = {
  loads: "libraryProblemsFirst", name: "libraryName", model: "libraryModel", trainer: "libraryTrainer", kind: "libraryKind",
  rank: "libraryRank", size: "librarySize", changed: "libraryChanged",
}; // prettier-ignore

export class LibraryView {
  search = make("input", "shelf-field shelf-search");
  filters = FILTERS.map(([filter, words]) => makeSelect(say(words), (value) => this.choose({ [filter]: value })));
  order = makeSelect(say("librarySort"), (value) => this.choose({ sort: value }));
  turn = makeIcon("", "", () => this.choose({ descending: !this.choice.descending }));
  legend = new Legend((state) => this.choose({ state }));
  group = makeIcon("pi-folder", "", () => this.choose({ grouped: !this.choice.grouped }));
  repair = makeButton("shelf-button", say("repairAll"), () => void this.openRepair());
  compare = makeButton("shelf-link shelf-compare", say("compare"), () => void compare(this.marked[0], this.marked[1]));
  columns = recallColumns();
  hasPictures = false;
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
    /** @type {Row[]} those that are wanted, also in closed folders */
    this.picked = [];
    /** @type {Set<string>} */
    this.closed = new Set();
    /** @type {import("./repair.mjs").RepairPanel | undefined} while it is open */
    this.mending = undefined;
    /** @type {string[]} the files chosen beside each other */
    this.marked = [];
    this.list = new LibraryList(this.makeManner(), this.makeHead());
    this.list.element.setAttribute("aria-label", say("library"));
    this.dress();
    this.details = new LibraryDetails({
      onAdd: (file) => void addInTheMiddle(file),
      onClose: () => this.closeDetails(),
      onSaved: () => void app.reloadNodeDefs().catch(() => this.shelf.refresh()), // else the tab has it refreshed
      dialects: () => this.shelf.dialects,
    });
    const main = (this.main = make("div", "locksmith-library-main", this.list.element, this.empty, this.details.element));
    const above = [make("style", "", style), this.makeTitle(), this.makeTools(), this.makeFault()];
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
    this.mending?.end();
    this.element.remove();
  }

  makeTitle() {
    this.status.setAttribute("role", "status");
    this.progress.setAttribute("aria-label", say("libraryScan"));
    this.compare.hidden = true;
    const told = make("div", "locksmith-library-status", this.status, this.progress, this.clear, this.compare);
    const refresh = makeIcon("pi-refresh", say("libraryRefresh"), () => void this.shelf.refresh());
    return make("header", "locksmith-library-title", make("h2", "", say("library")), told, this.repair, refresh);
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
    const choice = makeColumnChoice((columns) => {
      this.columns = columns;
      this.list.dress(this.makeManner(), this.makeHead());
      this.dress();
      this.update();
    });
    const order = make("div", "shelf-order", this.order, this.turn, this.group, choice);
    const filters = make("div", "shelf-filters", ...this.filters);
    return make("div", "locksmith-library-tools", this.search, this.legend.element, filters, order);
  }

  makeFault() {
    this.fault.setAttribute("role", "alert");
    return this.fault;
  }

  /** @param {import("./columns.mjs").Column} column */
  makeTitleOf({ name, words }) {
    const title = make("div", `shelf-${name}`);
    if (name in SORT_WORDS) {
      const turn = () => this.choose({ sort: name, descending: this.choice.sort === name && !this.choice.descending });
      title.append(makeButton("", say(words), turn));
    } else if (name === "picture") {
      title.setAttribute("aria-label", say(words)); // its column is too narrow for the word
    } else {
      title.textContent = say(words);
    }
    title.setAttribute("role", "columnheader");
    title.setAttribute("aria-colindex", String(this.columns.findIndex((column) => column.name === name) + 1));
    return title;
  }

  makeHead() {
    this.titles = this.columns.map((column) => this.makeTitleOf(column));
    const head = make("div", "shelf-list-head", ...this.titles);
    head.setAttribute("role", "row");
    head.setAttribute("aria-rowindex", "1");
    return head;
  }

  /** Have the page's style know which columns there are. */
  dress() {
    const { element } = this.list;
    const without = !this.hasPictures || !this.columns.some(({ name }) => name === "picture");
    element.style.setProperty("--shelf-columns", this.columns.map(({ name, width }) => (name === "picture" && without ? "0" : width)).join(" "));
    element.classList.toggle("shelf-without-picture", without);
  }

  /** @returns {import("./list.mjs").Manner} */
  makeManner() {
    const { columns } = this;
    return {
      columns: columns.length,
      lines: columns.some(({ name }) => name === "trainer") ? 3 : 2,
      makeCells: () => makeCells(columns),
      fill: (cells, row) => fillRow(cells, row, columns, this.choice.grouped),
      fillFolder: (cell, folder) => fillFolder(cell, folder, () => void this.openRepair(folder.folder)),
      onSettled: (cells, row) => settleRow(cells, row, columns),
      onOpen: (row, byKey) => {
        void this.details.show(row, byKey);
        this.list.reveal(); // the details take a part of its room
      },
      onMove: (row) => void (this.details.file && this.details.show(row)),
      onMark: (files) => this.mark(files),
      onDrag: (event, row) => carry(event, row.file),
      onTurn: ({ folder }, isClosed) => {
        if (isClosed) this.closed.add(folder);
        else this.closed.delete(folder);
        this.update();
      },
    };
  }

  /**
   * Two can be compared.
   *
   * @param {string[]} files chosen beside each other
   */
  mark(files) {
    this.marked = files;
    this.compare.hidden = files.length !== 2;
    this.compare.title = say("compareTwo", { a: files[0], b: files[1] });
  }

  /**
   * Mend what is shown now.
   *
   * @param {string} [folder] only what is in it
   */
  async openRepair(folder) {
    if (this.mending) return;
    const names = this.picked.filter((row) => folder === undefined || row.folder === folder).map(({ file }) => file);
    const { RepairPanel } = await loadRepair();
    if (this.mending) return;
    this.mending = new RepairPanel(names, {
      onClose: () => {
        this.mending?.end();
        this.mending = undefined;
        this.main.classList.remove("shelf-mending");
        this.repair.disabled = false;
        this.repair.focus();
        this.list.measure();
      },
      onDone: () => void app.reloadNodeDefs().catch(() => this.shelf.refresh()),
    });
    this.repair.disabled = true;
    this.main.classList.add("shelf-mending");
    this.main.append(this.mending.element);
    void this.mending.begin();
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
    if (this.closed.delete(row.folder)) this.update();
    if (!this.wanted) return; // that was done by the update
    this.wanted = "";
    this.list.move(this.list.items.indexOf(row));
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
    const { sort, descending, grouped } = this.choice;
    this.search.value = "";
    this.choose({ ...EVERYTHING, sort, descending, grouped });
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
    if (event.key === "Escape" && this.mending) this.mending.leave();
    else if (event.key === "Escape" && this.details.file) this.closeDetails();
    if (!modified) event.stopPropagation(); // letters and Delete are shortcuts of the canvas
  }

  /** Show what the shelf has now; nothing is sorted and counted again for rows that are as they were. */
  follow() {
    if (this.shelf.rows !== this.ordered || this.wanted) this.update();
    else this.tellStatus(this.picked.length);
  }

  /** Show what the shelf has now, as it is wanted. */
  update() {
    const { rows } = this.shelf;
    const order = `${this.choice.sort} ${this.choice.descending}`;
    if (rows !== this.ordered || order !== this.orderedBy) {
      this.inOrder = sorted(rows, this.choice);
      [this.ordered, this.orderedBy] = [rows, order];
      this.hasPictures = rows.some(({ has_picture }) => has_picture); // else their column would be empty
      this.dress();
    }
    const { picked, counts } = pick(this.inOrder, this.choice);
    this.picked = picked;
    this.list.show(this.choice.grouped ? inFolders(picked, this.choice, this.closed) : picked);
    this.tellOrder();
    FILTERS.forEach(([filter, words], index) => offer(this.filters[index], say(words), counts[filter], this.choice[filter]));
    this.legend.show(counts.state, this.choice.state);
    this.tellStatus(picked.length);
    if (this.wanted) this.goToWanted(picked);
  }

  tellOrder() {
    const { sort, descending, grouped } = this.choice;
    this.titles?.forEach((title, index) => {
      const { name } = this.columns[index];
      if (name in SORT_WORDS) title.setAttribute("aria-sort", name !== sort ? "none" : descending ? "descending" : "ascending");
    });
    dressIcon(this.group, "pi-folder", say("libraryGroup"));
    this.group.setAttribute("aria-pressed", String(grouped));
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
    const { sort: _, descending: __, grouped: ___, ...narrowing } = this.choice;
    this.clear.hidden = !Object.values(narrowing).some(Boolean);
    this.fault.textContent = fault;
    this.empty.hidden = shown > 0;
    this.empty.textContent = rows.length ? say("libraryNoMatch") : running || fault ? "" : say("libraryEmpty");
    this.list.element.hidden = !shown;
    this.repair.disabled = !shown || Boolean(this.mending);
  }
}
