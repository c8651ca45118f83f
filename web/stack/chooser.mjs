/** A list of files that opens over the page, and that typing filters. */

import { adoptStyle, make } from "../shared/dom.mjs";
import { pictureOf } from "../shared/server.mjs";
import { folderAndTitle } from "./rows.mjs";
import { say } from "../i18n/words.mjs";

await adoptStyle("./chooser.css", import.meta.url); // the list is never seen without its look

/**
 * What is asked, among which files, which of them are names of what is connected, which it is now, which are used already,
 * and what to do with the answer.
 *
 * @typedef {{label: string, files: string[], connected: string[], current: string, taken: Set<string>, choose: (file: string) => void}} Wish
 */

const PORTION = 100; // entries put into the document at a time
const GAP = 4;
const PICTURE = 208; // how wide it may be
let choosers = 0;

/**
 * Let a person choose one of the files, or with Shift several.
 *
 * @param {Element} anchor what it opens beside
 * @param {Wish} wish
 */
export function openChooser(anchor, wish) {
  new Chooser(anchor, wish).open();
}

class Chooser {
  /**
   * @param {Element} anchor
   * @param {Wish} wish
   */
  constructor(anchor, wish) {
    this.anchor = anchor;
    this.wish = wish;
    this.found = wish.files;
    this.active = Math.max(0, wish.files.indexOf(wish.current));
    this.identifier = `locksmith-chooser-${(choosers += 1)}`;
    this.field = make("input", "locksmith-chooser-field");
    this.list = make("div", "locksmith-chooser-list");
    this.told = make("p", "locksmith-chooser-told");
    this.picture = make("div", "locksmith-chooser-picture");
    this.pictured = "";
    this.element = make("div", "locksmith-chooser", this.field, this.list, this.told, this.picture);
    this.describe();
    this.field.addEventListener("input", () => this.filter());
    this.element.addEventListener("keydown", (event) => this.takeKey(event));
    this.list.addEventListener("scroll", () => this.drawMore(), { passive: true });
    this.list.addEventListener("pointerdown", (event) => event.preventDefault()); // the field keeps the focus
    this.list.addEventListener("pointerover", (event) => this.show(this.found[this.indexOf(event.target)] ?? this.pictured));
    this.list.addEventListener("click", (event) => this.pick(this.indexOf(event.target), event.shiftKey));
    this.element.addEventListener("toggle", (event) => {
      if (/** @type {ToggleEvent} */ (event).newState === "closed") this.element.remove();
    });
  }

  describe() {
    const filter = say("stackFilter", { count: this.wish.files.length });
    this.element.popover = "auto";
    setAll(this.element, { role: "dialog", "aria-label": this.wish.label });
    setAll(this.field, { role: "combobox", "aria-expanded": "true", "aria-controls": this.identifier, "aria-label": filter });
    setAll(this.field, { placeholder: filter, autocomplete: "off", spellcheck: "false" });
    setAll(this.list, { role: "listbox", id: this.identifier, "aria-label": this.wish.label });
    this.told.setAttribute("role", "status");
  }

  open() {
    document.body.append(this.element);
    this.element.showPopover();
    this.draw();
    const { left, top, bottom } = this.anchor.getBoundingClientRect();
    const { width, height } = this.element.getBoundingClientRect();
    const x = Math.max(GAP, Math.min(left, innerWidth - width - GAP));
    const isBelow = bottom + GAP + height <= innerHeight;
    const y = Math.max(GAP, isBelow ? bottom + GAP : Math.min(top - GAP, innerHeight - GAP) - height);
    this.element.classList.toggle("locksmith-chooser-at-right", x + width + PICTURE > innerWidth);
    this.element.style.cssText = `height: ${height}px; left: ${x}px; top: ${y}px`; // as high as it is with all files
    this.field.focus();
  }

  filter() {
    const words = this.field.value.toLowerCase().split(/\s+/).filter(Boolean);
    this.found = this.wish.files.filter((file) => words.every((word) => file.toLowerCase().includes(word)));
    this.active = 0;
    this.draw();
  }

  draw() {
    this.list.replaceChildren();
    this.list.scrollTop = 0;
    this.drawUpTo(Math.max(PORTION, this.active + 1));
    const [found, count] = [this.found.length, this.wish.files.length];
    this.told.textContent = found ? say("stackFound", { found, count }) : say(count ? "stackNotFound" : "stackNoFiles");
    this.mark();
  }

  drawMore() {
    if (this.list.scrollTop + 2 * this.list.clientHeight > this.list.scrollHeight) this.drawUpTo(this.list.childElementCount + PORTION);
  }

  /** @param {number} count of entries in the document */
  drawUpTo(count) {
    const drawn = this.list.childElementCount;
    this.list.append(...this.found.slice(drawn, count).map((file, index) => this.entry(file, drawn + index)));
  }

  /**
   * @param {string} file
   * @param {number} index
   */
  entry(file, index) {
    const [folder, title] = folderAndTitle(file);
    const parts = [make("span", "locksmith-chooser-title", title), make("span", "locksmith-chooser-folder", folder)];
    const entry = make("div", "locksmith-chooser-entry", ...parts);
    const place = { "aria-setsize": `${this.found.length}`, "aria-posinset": `${index + 1}` };
    setAll(entry, { role: "option", id: `${this.identifier}-${index}`, title: file, ...place });
    entry.classList.toggle("locksmith-chooser-taken", this.wish.taken.has(file));
    return entry;
  }

  /** Show which entry Enter takes. */
  mark() {
    this.drawUpTo(this.active + 1);
    for (const entry of this.list.querySelectorAll("[aria-selected]")) entry.removeAttribute("aria-selected");
    const entry = /** @type {HTMLElement | undefined} */ (this.list.children[this.active]);
    entry?.setAttribute("aria-selected", "true");
    this.field.setAttribute("aria-activedescendant", entry?.id ?? "");
    this.show(this.found[this.active] ?? "");
    if (!entry) return;
    const [top, view] = [entry.offsetTop - this.list.offsetTop, this.list.clientHeight];
    this.list.scrollTop = Math.min(top, Math.max(this.list.scrollTop, top + entry.offsetHeight - view));
  }

  /** @param {string} file whose picture is shown, where it has one */
  show(file) {
    if (file === this.pictured) return;
    this.pictured = file;
    this.picture.replaceChildren(...(file && !this.wish.connected.includes(file) ? [pictureOf(file, "")] : []));
  }

  /** @param {KeyboardEvent} event */
  takeKey(event) {
    event.stopPropagation(); // none of these keys is for the canvas
    const page = Math.max(1, Math.floor(this.list.clientHeight / 28) - 1);
    const steps = /** @type {Record<string, number>} */ ({ ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page });
    if (event.key in steps) {
      event.preventDefault();
      this.active = Math.max(0, Math.min(this.found.length - 1, this.active + steps[event.key]));
      this.mark();
    } else if (event.key === "Enter") {
      event.preventDefault();
      this.pick(this.active, event.shiftKey);
    } else if (event.key === "Tab" || event.key === "Escape") {
      event.preventDefault();
      this.close();
    }
  }

  /** @param {EventTarget | null} target */
  indexOf(target) {
    const entry = /** @type {Element | null} */ (target)?.closest("[role=option]");
    return entry ? [...this.list.children].indexOf(entry) : -1;
  }

  /**
   * @param {number} index
   * @param {boolean} goOn whether another file is to be chosen
   */
  pick(index, goOn) {
    const file = this.found[index];
    if (file === undefined) return;
    this.wish.choose(file);
    if (!goOn) return this.close();
    this.active = index;
    this.list.children[index]?.classList.add("locksmith-chooser-taken");
    this.mark();
  }

  close() {
    this.element.hidePopover(); // gives the focus back
  }
}

/**
 * @param {Element} element
 * @param {Record<string, string>} attributes
 */
function setAll(element, attributes) {
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
}
