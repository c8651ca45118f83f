/** A list of files that opens over the page, and that typing filters. */

import { adoptStyle, make } from "../shared/dom.mjs";
import { pictureOf } from "../shared/server.mjs";
import { found } from "./find.mjs";
import { FitFilter } from "./fit_filter.mjs";
import { folderAndTitle } from "./rows.mjs";
import { say } from "../i18n/words.mjs";
import "../i18n/more.mjs";

await adoptStyle("./chooser.css", import.meta.url); // the list is never seen without its look

/**
 * What is asked, among which files, which names stand for what is connected, which it is now, which are used already, which model
 * is wired, what to do with the answer, and whether there can be one only.
 *
 * @typedef {{label: string, files: string[], connected: string[], current: string, taken: Set<string>,
 *   model: import("../preview/preview.mjs").ModelFile | null, choose: (file: string) => void, isSingle?: boolean}} Wish
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
    this.query = "";
    this.found = this.among("");
    this.active = Math.max(0, this.found.indexOf(wish.current));
    this.hasFolders = wish.files.some((file) => folderAndTitle(file)[0]);
    this.filter = new FitFilter(wish.model, () => this.refine());
    /** @type {HTMLElement[]} what is in the document of `found`, in its order */
    this.entries = [];
    this.identifier = `locksmith-chooser-${(choosers += 1)}`;
    this.field = make("input", "locksmith-chooser-field");
    this.list = make("div", "locksmith-chooser-list");
    this.told = make("p", "locksmith-chooser-told");
    this.picture = make("div", "locksmith-chooser-picture");
    this.pictured = "";
    this.element = make("div", "locksmith-chooser", this.field, this.filter.element, this.list, this.told, this.picture);
    this.describe();
    this.field.addEventListener("input", () => this.refine());
    this.element.addEventListener("keydown", (event) => this.takeKey(event));
    this.list.addEventListener("scroll", () => this.drawMore(), { passive: true });
    this.list.addEventListener("pointerdown", (event) => event.preventDefault()); // the field keeps the focus
    this.list.addEventListener("pointerover", (event) => this.show(this.found[this.indexOf(event.target)] ?? this.pictured));
    this.list.addEventListener("click", (event) => this.pick(this.indexOf(event.target), event.shiftKey));
    this.element.addEventListener("toggle", (event) => {
      if (/** @type {ToggleEvent} */ (event).newState === "closed") this.end();
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
    (this.anchor.closest("[popover]") ?? document.body).append(this.element); // what it is asked in stays open
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
    this.filter.start();
  }

  end() {
    this.filter.end();
    this.element.remove();
  }

  /**
   * What is connected, then the files that have the words.
   *
   * @param {string} query
   */
  among(query) {
    const { connected, files } = this.wish;
    return [...found(connected, query), ...found(files, query)];
  }

  /** Show what is asked for now; the entry that Enter takes stays where only others went. */
  refine() {
    const file = this.query === this.field.value ? this.found[this.active] : undefined;
    this.query = this.field.value;
    this.found = this.among(this.query).filter((one) => this.wish.connected.includes(one) || this.filter.lets(one));
    this.active = Math.max(0, this.found.indexOf(file ?? ""));
    this.draw();
  }

  draw() {
    this.list.replaceChildren();
    this.entries = [];
    this.list.scrollTop = 0;
    this.drawUpTo(Math.max(PORTION, this.active + 1));
    this.tell();
    this.mark();
  }

  tell() {
    const [shown, count] = [this.found.length, this.wish.connected.length + this.wish.files.length];
    const fits = this.filter.tell(this.found);
    const none = !count ? "stackNoFiles" : this.filter.on ? "stackNoneFits" : "stackNotFound";
    const shift = this.wish.isSingle ? "" : say("stackShift");
    const told = shown ? [say("stackFound", { found: shown, count }), fits, shift] : [fits, say(none)];
    this.told.textContent = told.filter(Boolean).join(" ");
  }

  drawMore() {
    if (this.list.scrollTop + 2 * this.list.clientHeight > this.list.scrollHeight) this.drawUpTo(this.entries.length + PORTION);
  }

  /** @param {number} count of entries in the document */
  drawUpTo(count) {
    for (let index = this.entries.length; index < Math.min(count, this.found.length); index += 1) {
      const entry = this.entry(this.found[index], index);
      this.groupOf(index).append(entry);
      this.entries.push(entry);
    }
  }

  /**
   * The group an entry belongs to: that of the one before it, or a new one, under the name of its folder.
   *
   * @param {number} index
   */
  groupOf(index) {
    const title = this.headingOf(this.found[index]);
    const last = this.list.lastElementChild;
    if (last && title === this.headingOf(this.found[index - 1])) return last;
    const heading = make("div", "locksmith-chooser-heading", title);
    heading.setAttribute("aria-hidden", "true"); // the group is called so
    const group = make("div", "", ...(title ? [heading] : []));
    setAll(group, { role: "group", "aria-label": title || this.wish.label });
    this.list.append(group);
    return group;
  }

  /**
   * What stands above a file and its like; "" where all are alike.
   *
   * @param {string} file
   */
  headingOf(file) {
    if (this.wish.connected.includes(file)) return say("stackConnected");
    const [folder] = folderAndTitle(file);
    return folder || (this.hasFolders || this.wish.connected.length ? say("stackNoFolder") : "");
  }

  /**
   * @param {string} file
   * @param {number} index
   */
  entry(file, index) {
    const [, title] = folderAndTitle(file);
    const isUntold = this.filter.isUntold(file) && !this.wish.connected.includes(file);
    const parts = [make("span", "locksmith-chooser-title", title), ...(isUntold ? [make("span", "locksmith-chooser-untold", say("stackUntold"))] : [])];
    const entry = make("div", "locksmith-chooser-entry", ...parts);
    const place = { "aria-setsize": `${this.found.length}`, "aria-posinset": `${index + 1}` };
    setAll(entry, { role: "option", id: `${this.identifier}-${index}`, title: file, "data-index": `${index}`, ...place });
    entry.classList.toggle("locksmith-chooser-taken", this.wish.taken.has(file));
    return entry;
  }

  /** Show which entry Enter takes. */
  mark() {
    this.drawUpTo(this.active + 1);
    for (const entry of this.list.querySelectorAll("[aria-selected]")) entry.removeAttribute("aria-selected");
    const entry = /** @type {HTMLElement | undefined} */ (this.entries[this.active]);
    entry?.setAttribute("aria-selected", "true");
    this.field.setAttribute("aria-activedescendant", entry?.id ?? "");
    this.show(this.found[this.active] ?? "");
    if (!entry) return;
    const first = /** @type {HTMLElement} */ (entry.previousElementSibling?.role === "option" ? entry : entry.parentElement); // with its heading
    const end = entry.offsetTop + entry.offsetHeight - this.list.offsetTop;
    this.list.scrollTop = Math.min(first.offsetTop - this.list.offsetTop, Math.max(this.list.scrollTop, end - this.list.clientHeight));
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
    const atFilter = event.target !== this.field;
    if (atFilter && (event.key === "Enter" || event.key === " ")) return; // presses it
    const page = Math.max(1, Math.floor(this.list.clientHeight / 28) - 1);
    const steps = /** @type {Record<string, number>} */ ({ ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page });
    if (event.key in steps) {
      event.preventDefault();
      this.field.focus();
      this.active = Math.max(0, Math.min(this.found.length - 1, this.active + steps[event.key]));
      this.mark();
    } else if (event.key === "Enter") {
      event.preventDefault();
      this.pick(this.active, event.shiftKey);
    } else if (event.key === "Tab" && !this.filter.element.hidden && event.shiftKey === atFilter) {
      event.preventDefault();
      (atFilter ? this.field : this.filter.element).focus();
    } else if (event.key === "Tab" || event.key === "Escape") {
      event.preventDefault();
      this.close();
    }
  }

  /** @param {EventTarget | null} target */
  indexOf(target) {
    const entry = /** @type {HTMLElement | null | undefined} */ (/** @type {Element | null} */ (target)?.closest("[role=option]"));
    return entry ? Number(entry.dataset.index) : -1;
  }

  /**
   * @param {number} index
   * @param {boolean} goOn whether another file is to be chosen
   */
  pick(index, goOn) {
    const file = this.found[index];
    if (file === undefined) return;
    const { choose, isSingle } = this.wish;
    if (isSingle) this.close(); // before what it leads to opens
    choose(file);
    if (isSingle) return;
    if (!goOn) return this.close();
    this.active = index;
    this.entries[index]?.classList.add("locksmith-chooser-taken");
    this.mark();
  }

  close() {
    this.element.hidePopover(); // gives the focus back, but for a list in a dialog
    const { activeElement: focused } = document;
    const isLost = focused === document.body || this.element.contains(focused);
    if (isLost && this.anchor instanceof HTMLElement) this.anchor.focus();
  }
}

/**
 * @param {Element} element
 * @param {Record<string, string>} attributes
 */
function setAll(element, attributes) {
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
}
