/** A list of any length of which only the rows in view are in the document. */

import { make } from "../shared/dom.mjs";

/** @typedef {import("./rows.mjs").Row} Row */

const WIDE_ROW = 28; // pixels, as in library.css
const NARROW_ROW = 46;
const HEAD = 28;
const NARROW = 620; // a narrower list has two lines a row
const SPARE = 6; // rows drawn above and below those in view
let lists = 0;

/**
 * How rows look, and what happens to them.
 *
 * @typedef {{columns: number, makeCells: () => HTMLElement[], fill: (cells: HTMLElement[], row: Row) => void,
 *   onOpen: (row: Row, byKey: boolean) => void, onMove: (row: Row) => void, onDrag: (event: DragEvent, row: Row) => void}} Manner
 */

export class LibraryList {
  /**
   * @param {Manner} manner
   * @param {HTMLElement} head the row of column titles
   */
  constructor(manner, head) {
    this.manner = manner;
    /** @type {Row[]} */
    this.rows = [];
    this.active = -1;
    this.activeFile = "";
    this.narrow = true;
    this.identifier = `shelf-list-${(lists += 1)}`;
    /** @type {Map<number, {element: HTMLElement, cells: HTMLElement[], row: Row | undefined}>} those in the document, by index */
    this.drawn = new Map();
    this.planned = 0;
    // Kept, because asking the page would make it lay itself out in the middle of a change.
    this.top = 0;
    this.height = 0;
    this.body = make("div", "shelf-list-rows");
    this.body.setAttribute("role", "rowgroup");
    this.element = make("div", "shelf-list", head, this.body);
    this.element.tabIndex = 0;
    this.element.setAttribute("role", "grid");
    this.element.setAttribute("aria-colcount", String(manner.columns));
    this.listen();
    this.observer = new ResizeObserver(() => this.measure());
    this.observer.observe(this.element);
  }

  get rowHeight() {
    return this.narrow ? NARROW_ROW : WIDE_ROW;
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
      this.move(index);
      this.manner.onOpen(this.rows[index], false);
    });
    // Else the first the canvas hears of a quick drag is that it was cancelled.
    this.body.addEventListener("pointerdown", (event) => {
      if (event.button === 0 && event.target instanceof Element) event.target.setPointerCapture(event.pointerId);
    });
    this.body.addEventListener("dragstart", (event) => {
      const row = this.rows[this.indexOf(event.target)];
      if (row) this.manner.onDrag(event, row);
    });
  }

  /** Let go of the page. */
  end() {
    this.observer.disconnect();
    cancelAnimationFrame(this.planned);
  }

  /**
   * Show other rows; the chosen one stays chosen if it is among them.
   *
   * @param {Row[]} rows
   */
  show(rows) {
    this.rows = rows;
    this.active = this.activeFile ? rows.findIndex((row) => row.file === this.activeFile) : -1;
    this.element.setAttribute("aria-rowcount", String(rows.length + 1));
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
    const first = this.top / this.rowHeight;
    this.height = this.element.clientHeight;
    if (narrow !== this.narrow) {
      this.narrow = narrow;
      this.element.classList.toggle("shelf-wide", !narrow);
      this.layOut();
      this.scrollTo(first * this.rowHeight);
    }
    this.draw();
  }

  layOut() {
    const whole = this.rows.length * this.rowHeight;
    this.body.style.height = `${whole}px`;
    this.top = Math.min(this.top, Math.max(0, whole + (this.narrow ? 0 : HEAD) - this.height)); // the page does the same
    for (const drawn of this.drawn.values()) drawn.row = undefined; // each may be another now
    this.draw();
  }

  draw() {
    cancelAnimationFrame(this.planned);
    this.planned = 0;
    const first = Math.max(0, Math.floor(this.top / this.rowHeight) - SPARE);
    const end = Math.min(this.rows.length, Math.ceil((this.top + this.height) / this.rowHeight) + SPARE);
    const free = [];
    for (const [index, drawn] of this.drawn) {
      if (index >= first && index < end) continue;
      free.push(drawn);
      this.drawn.delete(index);
    }
    for (let index = first; index < end; index += 1) this.drawRow(index, free);
    for (const { element } of free) element.remove();
    this.markActive();
  }

  /**
   * @param {number} index
   * @param {{element: HTMLElement, cells: HTMLElement[], row: Row | undefined}[]} free rows that went out of view
   */
  drawRow(index, free) {
    let drawn = this.drawn.get(index);
    const row = this.rows[index];
    if (drawn?.row === row) return;
    drawn ??= free.pop() ?? this.makeRow();
    drawn.row = row;
    this.drawn.set(index, drawn);
    const { element } = drawn;
    element.dataset.index = String(index);
    element.id = `${this.identifier}-${index}`;
    element.setAttribute("aria-rowindex", String(index + 2)); // the head is the first
    element.style.transform = `translateY(${index * this.rowHeight}px)`;
    this.manner.fill(drawn.cells, row);
    if (!element.parentNode) this.body.append(element);
  }

  makeRow() {
    const cells = this.manner.makeCells();
    for (const cell of cells) cell.setAttribute("role", "gridcell");
    const element = make("div", "shelf-list-row", ...cells);
    element.setAttribute("role", "row");
    element.draggable = true;
    return { element, cells, row: /** @type {Row | undefined} */ (undefined) };
  }

  markActive() {
    for (const [index, { element }] of this.drawn) element.setAttribute("aria-selected", String(index === this.active));
    if (this.drawn.has(this.active)) this.element.setAttribute("aria-activedescendant", `${this.identifier}-${this.active}`);
    else this.element.removeAttribute("aria-activedescendant");
  }

  /** @param {EventTarget | null} target */
  indexOf(target) {
    const element = target instanceof Element ? target.closest(".shelf-list-row") : null;
    return element instanceof HTMLElement ? Number(element.dataset.index) : -1;
  }

  /** @param {KeyboardEvent} event */
  takeKey(event) {
    if (event.target !== this.element || event.ctrlKey || event.metaKey || event.altKey) return;
    const page = Math.max(1, Math.floor(this.element.clientHeight / this.rowHeight) - 1);
    /** @type {Record<string, number>} */
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity };
    const row = this.rows[this.active];
    if (event.key in steps) this.move(this.active < 0 && Number.isFinite(steps[event.key]) ? 0 : this.active + steps[event.key]);
    else if ((event.key === "Enter" || event.key === " ") && row) this.manner.onOpen(row, true);
    else return;
    event.preventDefault();
  }

  /** @param {number} index of the row to choose; one beyond the ends is the last or first */
  move(index) {
    if (!this.rows.length) return;
    this.active = Math.max(0, Math.min(this.rows.length - 1, index));
    this.activeFile = this.rows[this.active].file;
    this.reveal();
    this.draw();
    this.manner.onMove(this.rows[this.active]);
  }

  reveal() {
    this.height = this.element.clientHeight;
    const top = this.active * this.rowHeight;
    const room = this.height - (this.narrow ? 0 : HEAD);
    this.scrollTo(Math.max(Math.min(this.top, top), top + this.rowHeight - room));
  }
}
