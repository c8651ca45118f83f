/** What the library tells of one file, and what can be done with it. */

import { copyButton, make, makeButton } from "../shared/dom.mjs";
import { chooseOther } from "../compare/choose.mjs";
import { copyOf } from "./copy.mjs";
import { makeIcon, makeMark, orBlank, tellSize, tellState } from "./words.mjs";
import { fromMarkdown } from "../shared/markup.mjs";
import { ask, pictureOf } from "../shared/server.mjs";
import { asSentence, say, tell } from "../i18n/words.mjs";
import "../i18n/more.mjs";

/** @typedef {import("./rows.mjs").Row} Row */
/**
 * What the details ask of the page around them.
 *
 * @typedef {{onAdd: (file: string) => void, onClose: () => void, onSaved: (file: string) => void, dialects: () => string[]}} Around
 */

const MAX_SHOWN = 200_000; // letters of a report: nobody scrolls through more
const PAUSE = 120; // milliseconds a row stays chosen before it is asked for

export class LibraryDetails {
  /** @param {Around} around */
  constructor(around) {
    this.around = around;
    this.file = "";
    /** @type {Row | undefined} the row of which not all is told yet */
    this.untold = undefined;
    /** @type {AbortController | undefined} */
    this.waiting = undefined;
    this.element = make("section", "shelf-details");
    this.element.hidden = true;
  }

  /**
   * @param {Row} row
   * @param {boolean} [withFocus]
   */
  async show(row, withFocus = false) {
    if (row.file !== this.file) {
      this.file = row.file;
      this.lay(row);
    }
    if (withFocus) this.heading?.focus({ preventScroll: true });
    await this.read(row);
  }

  /** Ask again for what the server did not tell. */
  async recover() {
    if (this.file && this.untold) await this.read(this.untold);
  }

  close() {
    this.waiting?.abort();
    this.untold = undefined;
    this.file = "";
    this.element.hidden = true;
    this.element.replaceChildren();
  }

  /** @param {Row} row */
  lay(row) {
    this.heading = make("h3", "", row.name);
    this.heading.tabIndex = -1;
    this.heading.title = row.file;
    const close = makeIcon("pi-times", say("libraryClose"), this.around.onClose);
    this.words = make("div", "shelf-triggers");
    this.report = make("div", "shelf-text");
    this.report.tabIndex = 0;
    this.report.setAttribute("role", "group");
    this.report.setAttribute("aria-label", say("libraryReport"));
    this.told = make("p", "shelf-faint", say("libraryReading"));
    this.told.setAttribute("role", "status");
    this.report.append(this.told);
    const head = make("div", "shelf-details-head", this.heading, close);
    const state = make("p", "", makeMark(row.state), ` ${tellState(row)}`);
    const known = [orBlank(row.model), orBlank(row.trainer), tellSize(row.bytes)].filter(Boolean);
    const facts = make("p", "shelf-faint", known.join(" · "));
    this.element.setAttribute("aria-label", say("libraryDetails", { file: row.name }));
    const picture = row.has_picture ? pictureOf(row.file, "shelf-preview") : "";
    this.offerWords(row.words);
    this.element.replaceChildren(head, picture, state, facts, ...this.makeActions(row), this.words, this.report);
    this.element.hidden = false;
  }

  /** @param {Row} row */
  makeActions(row) {
    const add = makeButton("shelf-button shelf-first", say("libraryAdd"), () => this.around.onAdd(row.file));
    add.title = say("libraryAddHint");
    const copy = makeCopy(say("libraryCopyName"), row.file, this.element);
    const actions = make("div", "shelf-actions", add);
    const form = row.error || !row.total ? "" : copyOf(row, this.around);
    if (form) {
      const save = makeButton("shelf-button", say("librarySave"), () => {
        form.hidden = !form.hidden;
        save.setAttribute("aria-expanded", String(!form.hidden));
        if (form.hidden) return;
        form.querySelector("select")?.focus();
        form.scrollIntoView({ block: "nearest" }); // its last button too
      });
      save.setAttribute("aria-expanded", "false");
      actions.append(save);
    }
    if (form) actions.append(this.makeCompare(row));
    actions.append(copy);
    return [actions, form];
  }

  /** @param {Row} row */
  makeCompare(row) {
    const button = makeButton("shelf-button", say("compareWith"), () => void chooseOther(button, row.file));
    button.title = say("compareHint");
    return button;
  }

  /** @param {Row} row */
  async read(row) {
    this.waiting?.abort();
    const waiting = (this.waiting = new AbortController());
    this.untold = row;
    let answer;
    try {
      await new Promise((done) => setTimeout(done, PAUSE));
      if (waiting.signal.aborted) return;
      answer = await ask("file", { name: row.file, full: 1 }, waiting.signal);
    } catch (fault) {
      if (!waiting.signal.aborted) this.told?.replaceChildren(fault instanceof Error ? fault.message : String(fault));
      return;
    }
    if (waiting.signal.aborted) return;
    this.untold = undefined;
    this.tell(answer);
  }

  /** @param {string[]} words */
  offerWords(words) {
    const buttons = words.map((word) => makeCopy(word, word, this.element));
    this.words?.replaceChildren(...(words.length ? [make("span", "shelf-faint", say("libraryTriggers")), ...buttons] : []));
  }

  /** @param {any} answer of the route */
  tell(answer) {
    this.offerWords(answer.trigger_words);
    const markdown = tell(answer.markdown, answer.translations);
    if (answer.error) this.told?.replaceChildren(asSentence(tell(answer.error, answer.translations)));
    else this.report?.replaceChildren(fromMarkdown(markdown.slice(0, MAX_SHOWN)));
    if (markdown.length > MAX_SHOWN) this.report?.append(make("p", "shelf-faint", say("libraryCut")));
  }
}

/**
 * @param {string} label
 * @param {string} text
 * @param {HTMLElement} home
 */
function makeCopy(label, text, home) {
  const button = copyButton("shelf-button", label, text, home);
  button.title = say("libraryCopyHint", { text });
  return button;
}
