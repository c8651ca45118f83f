/** A list of any length of which only the rows in view are in the document. */

import { make } from "../shared/dom.mjs";

/** @typedef {import("./rows.mjs").Row} Row */
/** @typedef {import("./rows.mjs").Folder} Folder */
/** @typedef {{element: HTMLElement, cells: HTMLElement[], isFolder: boolean, item: Row | Folder | undefined}} Drawn */

const WIDE_ROW = 34; // pixels, as in library.css
const NARROW_LINE = 18;
const AROUND_LINES = 12;
const FOLDER = 28;
const HEAD = 28;
const NARROW = 620; // a narrower list has several lines a row
const SPARE = 200; // pixels drawn above and below those in view
const SETTLED = 120; // milliseconds in which nobody scrolled
let lists = 0;

/**
 * How rows look, and what happens to them. `lines`: of a row in a narrow list. `onSettled` gets the cells of a row that stays in view.
 *
 * @typedef {{columns: number, lines: number, makeCells: () => HTMLElement[], fill: (cells: HTMLElement[], row: Row) => void,
 *   fillFolder: (cell: HTMLElement, folder: Folder) => void, onSettled: (cells: HTMLElement[], row: Row) => void,
 *   onOpen: (row: Row, byKey: boolean) => void, onMove: (row: Row) => void, onDrag: (event: DragEvent, row: Row) => void,
 *   onMark: (files: string[]) => void, onTurn: (folder: Folder, isClosed: boolean) => void}} Manner
 */

export class LibraryList {
  /**
   * @param {Manner} manner
   * @param {HTMLElement} head the row of column titles
   */
  constructor(manner, head) {
    this.manner = manner;
    /** @type {(Row | Folder)[]} */
    this.items = [];
    /** Where each item begins, and where the last one ends, in pixels. */
    this.tops = new Float64Array(1);
    this.active = -1;
    this.activeFile = "";
    /** @type {Set<string>} the files chosen beside each other, with Ctrl; none where one is chosen as usual */
    this.marked = new Set();
    this.narrow = true;
    this.identifier = `shelf-list-${(lists += 1)}`;
    /** @type {Map<number, Drawn>} those in the document, by index */
    this.drawn = new Map();
    this.planned = 0;
    this.settling = 0;
    // Kept, because asking the page would make it lay itself out in the middle of a change.
    this.top = 0;
    this.height = 0;
    this.body = make("div", "shelf-list-rows");
    this.body.setAttribute("role", "rowgroup");
    this.element = make("div", "shelf-list", head, this.body);
    this.element.tabIndex = 0;
    this.element.setAttribute("aria-multiselectable", "true");
    this.listen();
    this.dress(manner, head);
    this.observer = new ResizeObserver(() => this.measure());
    this.observer.observe(this.element);
  }

  /**
   * Give the rows other columns.
   *
   * @param {Manner} manner
   * @param {HTMLElement} head
   */
  dress(manner, head) {
    this.manner = manner;
    this.element.firstElementChild?.replaceWith(head);
    this.element.setAttribute("aria-colcount", String(manner.columns));
    for (const { element } of this.drawn.values()) element.remove();
    this.drawn.clear();
    this.layOut();
  }

  get rowHeight() {
    return this.narrow ? this.manner.lines * NARROW_LINE + AROUND_LINES : WIDE_ROW;
  }

  listen() {
    this.element.addEventListener("scroll", () => {
      this.top = this.element.scrollTop;
      this.planned ||= requestAnimationFrame(() => this.draw());
    });
    this.element.addEventListener("keydown", (event) => this.takeKey(event));
    this.body.addEventListener("click", (event) => {
      const index = this.indexOf(event.target);
      if (index < 0) return;
      this.element.focus({ preventScroll: true });
      if (event.ctrlKey || event.metaKey) return this.mark(index);
      this.move(index);
      this.open(this.items[index], false);
    });
    // Else the first the canvas hears of a quick drag is that it was cancelled.
    this.body.addEventListener("pointerdown", (event) => {
      if (event.button === 0 && event.target instanceof Element) event.target.setPointerCapture(event.pointerId);
    });
    this.body.addEventListener("dragstart", (event) => {
      const item = this.items[this.indexOf(event.target)];
      if (item && !isFolder(item)) this.manner.onDrag(event, item);
    });
  }

  /**
   * @param {Row | Folder} item
   * @param {boolean} byKey
   */
  open(item, byKey) {
    if (isFolder(item)) this.manner.onTurn(item, !item.isClosed);
    else this.manner.onOpen(item, byKey);
  }

  /**
   * Choose an item beside the others, or no longer.
   *
   * @param {number} index
   */
  mark(index) {
    const item = this.items[index];
    if (!item || isFolder(item)) return;
    const chosen = this.activeFile; // which may be none of those that are searched for now
    if (!this.marked.size && chosen && !chosen.endsWith("/") && chosen !== item.file) this.marked.add(chosen);
    if (!this.marked.delete(item.file)) this.marked.add(item.file);
    this.manner.onMark([...this.marked]);
    this.draw();
  }

  unmark() {
    if (!this.marked.size) return;
    this.marked.clear();
    this.manner.onMark([]);
  }

  /** Let go of the page. */
  end() {
    this.observer.disconnect();
    cancelAnimationFrame(this.planned);
    clearTimeout(this.settling);
  }

  /**
   * Show other rows; the chosen one stays chosen if it is among them.
   *
   * @param {(Row | Folder)[]} items
   */
  show(items) {
    this.items = items;
    this.active = this.activeFile ? items.findIndex((item) => item.file === this.activeFile) : -1;
    const inFolders = items.length > 0 && isFolder(items[0]);
    this.element.setAttribute("role", inFolders ? "treegrid" : "grid");
    this.element.classList.toggle("shelf-in-folders", inFolders);
    this.element.setAttribute("aria-rowcount", String(items.length + 1));
    this.layOut();
  }

  /** @param {number} top in pixels */
  scrollTo(top) {
    if (top === this.top) return;
    this.top = top;
    this.element.scrollTop = top;
  }

  measure() {
    const narrow = this.element.clientWidth < NARROW;
    this.height = this.element.clientHeight;
    if (narrow !== this.narrow) {
      const first = this.at(this.top);
      this.narrow = narrow;
      this.element.classList.toggle("shelf-wide", !narrow);
      this.layOut();
      this.scrollTo(this.tops[Math.min(first, this.items.length)]);
    }
    this.draw();
  }

  layOut() {
    const { items, rowHeight } = this;
    const tops = (this.tops = new Float64Array(items.length + 1));
    for (let index = 0; index < items.length; index += 1) tops[index + 1] = tops[index] + (isFolder(items[index]) ? FOLDER : rowHeight);
    const whole = tops[items.length];
    this.body.style.height = `${whole}px`;
    this.element.style.setProperty("--shelf-row", `${rowHeight}px`);
    this.element.style.setProperty("--shelf-whole", `${whole}px`);
    this.top = Math.min(this.top, Math.max(0, whole + (this.narrow ? 0 : HEAD) - this.height)); // the page does the same
    for (const drawn of this.drawn.values()) drawn.item = undefined; // each may be another now
    this.draw();
  }

  /**
   * @param {number} top in pixels
   * @returns {number} the index of the item there
   */
  at(top) {
    let [low, high] = [0, this.items.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.tops[middle + 1] <= top) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  draw() {
    cancelAnimationFrame(this.planned);
    this.planned = 0;
    const first = this.at(Math.max(0, this.top - SPARE));
    const end = Math.min(this.items.length, this.at(this.top + this.height + SPARE) + 1);
    /** @type {Drawn[]} */
    const free = [];
    for (const [index, drawn] of this.drawn) {
      const item = this.items[index];
      if (index >= first && index < end && item && isFolder(item) === drawn.isFolder) continue;
      free.push(drawn);
      this.drawn.delete(index);
    }
    for (let index = first; index < end; index += 1) this.drawItem(index, free);
    for (const { element } of free) element.remove();
    this.markActive();
    clearTimeout(this.settling);
    this.settling = setTimeout(() => this.settle(), SETTLED);
  }

  settle() {
    for (const { cells, item } of this.drawn.values()) if (item && !isFolder(item)) this.manner.onSettled(cells, item);
  }

  /**
   * @param {number} index
   * @param {Drawn[]} free items that went out of view
   */
  drawItem(index, free) {
    let drawn = this.drawn.get(index);
    const item = this.items[index];
    if (drawn?.item === item) return;
    const place = drawn ? -1 : free.findIndex((one) => one.isFolder === isFolder(item));
    drawn ??= place < 0 ? this.makeDrawn(isFolder(item)) : free.splice(place, 1)[0];
    drawn.item = item;
    this.drawn.set(index, drawn);
    const { element } = drawn;
    element.dataset.index = String(index);
    element.id = `${this.identifier}-${index}`;
    element.setAttribute("aria-rowindex", String(index + 2)); // the head is the first
    element.style.transform = `translateY(${this.tops[index]}px)`;
    if (isFolder(item)) {
      element.setAttribute("aria-expanded", String(!item.isClosed));
      this.manner.fillFolder(drawn.cells[0], item);
    } else {
      if (this.element.classList.contains("shelf-in-folders")) element.setAttribute("aria-level", "2");
      else element.removeAttribute("aria-level");
      this.manner.fill(drawn.cells, item);
    }
    if (!element.parentNode) this.body.append(element);
  }

  /**
   * @param {boolean} ofFolder
   * @returns {Drawn}
   */
  makeDrawn(ofFolder) {
    const cells = ofFolder ? [make("div", "")] : this.manner.makeCells();
    for (const cell of cells) cell.setAttribute("role", "gridcell");
    const element = make("div", ofFolder ? "shelf-list-folder" : "shelf-list-row", ...cells);
    element.setAttribute("role", "row");
    element.draggable = !ofFolder;
    if (ofFolder) {
      cells[0].setAttribute("aria-colspan", String(this.manner.columns));
      element.setAttribute("aria-level", "1");
    }
    return { element, cells, isFolder: ofFolder, item: undefined };
  }

  markActive() {
    for (const [index, { element, item }] of this.drawn) {
      const isMarked = this.marked.size && item ? this.marked.has(item.file) : index === this.active;
      element.setAttribute("aria-selected", String(isMarked));
      element.classList.toggle("shelf-beside-marked", this.marked.size > 0 && index === this.active);
    }
    if (this.drawn.has(this.active)) this.element.setAttribute("aria-activedescendant", `${this.identifier}-${this.active}`);
    else this.element.removeAttribute("aria-activedescendant");
  }

  /** @param {EventTarget | null} target */
  indexOf(target) {
    const element = target instanceof Element ? target.closest("[data-index]") : null;
    return element instanceof HTMLElement ? Number(element.dataset.index) : -1;
  }

  /** @param {KeyboardEvent} event */
  takeKey(event) {
    if (event.target !== this.element || event.altKey) return;
    if (event.ctrlKey || event.metaKey) return this.takeKeyBeside(event);
    const page = Math.max(1, Math.floor(this.element.clientHeight / this.rowHeight) - 1);
    /** @type {Record<string, number>} */
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity };
    const item = this.items[this.active];
    if (event.key in steps) this.move(this.active < 0 && Number.isFinite(steps[event.key]) ? 0 : this.active + steps[event.key]);
    else if (event.key === "ArrowLeft" || event.key === "ArrowRight") this.goSideways(event.key === "ArrowLeft");
    else if ((event.key === "Enter" || event.key === " ") && item) this.open(item, true);
    else return;
    event.preventDefault();
  }

  /**
   * With Ctrl: go on while what is chosen stays so, and choose a row beside it.
   *
   * @param {KeyboardEvent} event
   */
  takeKeyBeside(event) {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (event.key === " ") this.mark(this.active);
    else if (step) this.goBeside(this.active + step);
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  /** @param {number} index */
  goBeside(index) {
    if (!this.marked.size) this.mark(this.active);
    this.active = Math.max(0, Math.min(this.items.length - 1, index));
    this.activeFile = this.items[this.active]?.file ?? "";
    this.reveal();
    this.draw();
  }

  /**
   * As in a tree: from a row to its folder, which opens and closes.
   *
   * @param {boolean} isLeft
   */
  goSideways(isLeft) {
    const item = this.items[this.active];
    if (!item) return;
    if (isFolder(item)) {
      if (item.isClosed !== isLeft) this.manner.onTurn(item, isLeft);
    } else if (isLeft) {
      let head = this.active;
      while (head >= 0 && !isFolder(this.items[head])) head -= 1;
      if (head >= 0) this.move(head);
    }
  }

  /** @param {number} index of the item to choose; one beyond the ends is the last or first */
  move(index) {
    if (!this.items.length) return;
    this.unmark();
    this.active = Math.max(0, Math.min(this.items.length - 1, index));
    const item = this.items[this.active];
    this.activeFile = item.file;
    this.reveal();
    this.draw();
    if (!isFolder(item)) this.manner.onMove(item);
  }

  reveal() {
    if (this.active < 0) return;
    this.height = this.element.clientHeight;
    const room = this.height - (this.narrow ? 0 : HEAD);
    this.scrollTo(Math.max(Math.min(this.top, this.tops[this.active]), this.tops[this.active + 1] - room));
  }
}

/**
 * @param {Row | Folder} item
 * @returns {item is Folder}
 */
export function isFolder(item) {
  return "isFolder" in item;
}
