/** The line a node shows of its file: what a run will make of it, then what it made of it; and why it failed, where it did. */

import { copyText, make, makeButton } from "../shared/dom.mjs";
import { lazily } from "../shared/lazy.mjs";
import { outcomeOf } from "./outcome.mjs";
import { lineOfFile, lineOfRun, spoken } from "./line.mjs";
import { tellAway } from "../shared/server.mjs";
import { say, tell, translationsOf } from "../i18n/words.mjs";

const TOLD = 1500; // milliseconds
/** Pixels: of what is wrong, below the line. */
export const WRONG = 50;
/** Of the line, and of a fault above it, a short one and a long one, which takes the place of what is wrong. */
const [LINE, FAULT, LONG_FAULT] = [34, 60, 126];
const SHORT = 150; // bytes of a fault, as Chinese letters are wider

/** @type {() => Promise<typeof import("./details.mjs")>} gets the dialog's code once there is something to open it for */
export const loadDetails = lazily("./details.mjs", import.meta.url);
/** @type {() => Promise<typeof import("./file_details.mjs")>} */
const loadFileDetails = lazily("./file_details.mjs", import.meta.url);

export class StatusView {
  /**
   * @param {() => {model: any, clip: string}} wiring of the node, for the details of a file that did not run
   * @param {() => string} layers its layer weights, for the same
   */
  constructor(wiring, layers) {
    this.wiring = wiring;
    this.layers = layers;
    this.title = this.file = "";
    this.message = ""; // why the node failed
    this.answer = /** @type {any} */ (null);
    this.text = this.shown = ""; // of a run's report: as the server has it, in English, and in the front end's language
    this.outcome = /** @type {import("./outcome.mjs").Outcome | null} */ (null);
    this.line = /** @type {import("./line.mjs").Line | null} */ (null);
    this.fault = make("p", "locksmith-fault");
    this.top = make("div", "locksmith-top");
    this.caution = make("p", "locksmith-caution");
    this.verdict = make("div", "locksmith-verdict");
    this.wrong = make("div", "locksmith-wrong", this.caution, this.verdict);
    this.element = make("section", "locksmith-status", this.fault, this.top, this.wrong);
    for (const part of [this.fault, this.wrong]) part.tabIndex = 0; // can be scrolled by keys too
    this.fill();
  }

  get height() {
    return LINE + (this.wrong.hidden ? 0 : WRONG) + (this.hasFault ? this.heightOfFault : 0);
  }

  get heightOfFault() {
    return new TextEncoder().encode(this.message).length > SHORT ? LONG_FAULT : FAULT;
  }

  get hasFault() {
    return !this.fault.hidden;
  }

  /** Whether a run told it. */
  get isReport() {
    return Boolean(this.text);
  }

  /**
   * @param {string} title of the node
   * @param {string} file
   * @param {any} answer of the route "file"
   */
  showFile(title, file, answer) {
    Object.assign(this, { title, file, answer });
    this.fill();
  }

  /**
   * @param {any} output of the node
   * @param {string} title
   * @param {string} file as the loras folders list it; "" for a node that names none
   */
  showRun(output, title, file) {
    if (this.file !== file) this.answer = null;
    Object.assign(this, { title, file, text: output.text[0], shown: tell(output.text[0], translationsOf(output)), outcome: outcomeOf(output) });
    if (this.outcome) this.outcome.file = file;
    this.message = "";
    this.fill();
    if (this.outcome?.state) loadDetails().catch(() => {}); // it is got again when it is wanted
  }

  /**
   * @param {string} message why the node failed, in place of an earlier run's report; "" where it did not
   * @param {string} title
   */
  showFault(message, title) {
    this.title = title;
    if (message) this.forgetRun();
    this.message = message;
    this.fill();
  }

  /** @param {string} message why nothing can be told of the file */
  showRefusal(message) {
    this.fill();
    this.top.replaceChildren(Object.assign(make("span", "locksmith-facts", message), { title: message }));
  }

  clear() {
    this.forgetRun();
    this.file = "";
    this.answer = null;
    this.fill();
  }

  forgetRun() {
    this.text = this.shown = "";
    this.outcome = null;
  }

  fill() {
    this.line = this.outcome ? lineOfRun(this.outcome, this.answer) : this.answer ? lineOfFile(this.answer) : null;
    const { cautions = [], sentences = [] } = this.line ?? {};
    this.fault.textContent = this.fault.title = this.message;
    this.fault.hidden = !this.message;
    this.caution.textContent = this.caution.title = cautions[0] ?? "";
    this.caution.hidden = !cautions[0];
    this.verdict.replaceChildren(...sentences.map((sentence) => make("p", "", sentence)));
    this.wrong.title = [...cautions, ...sentences].join("\n");
    this.wrong.hidden = !this.wrong.title || this.hasFault; // a fault says it
    this.top.replaceChildren(...this.topParts());
    this.element.classList.toggle("locksmith-report", this.isReport);
    this.element.setAttribute("role", this.isReport ? "region" : "status"); // a status is said when it changes
    this.element.setAttribute("aria-label", say(this.isReport ? "report" : "preview", { node: this.title }));
  }

  topParts() {
    if (!this.line) return [];
    const facts = this.line.facts.join(" \u00b7 ");
    const words = this.answer?.words_to_use?.join(", ") ?? "";
    const parts = [makeBadge(this.line), Object.assign(make("span", "locksmith-facts", facts), { title: [facts, ...this.line.more].join("\n") })];
    if (words) parts.push(iconButton("pi-copy", say("lineWords", { words }), (button) => void this.copyWords(words, button)));
    if (this.outcome?.state || this.answer?.total) parts.push(iconButton("pi-info-circle", say("panelDetails"), () => void this.showDetails()));
    return parts;
  }

  /**
   * @param {string} words
   * @param {HTMLElement} button
   */
  async copyWords(words, button) {
    const copied = await copyText(words, this.element);
    button.classList.replace("pi-copy", copied ? "pi-check" : "pi-times");
    button.title = say(copied ? "copied" : "notCopied");
    setTimeout(() => this.top.replaceChildren(...this.topParts()), TOLD);
  }

  async showDetails() {
    if (this.outcome) return showDetails(this.title, this.outcome, this.shown);
    try {
      await (await loadFileDetails()).openFileDetails(this.file, this.wiring(), this.layers());
    } catch (fault) {
      tellAway(say("panelDetails"), fault);
    }
  }
}

/**
 * Open the details of a run.
 *
 * @param {string} title of the node
 * @param {import("./outcome.mjs").Outcome} outcome
 * @param {string} text the report
 */
export async function showDetails(title, outcome, text) {
  try {
    (await loadDetails()).openDetails(title, outcome, text);
  } catch (fault) {
    tellAway(say("panelDetails"), fault);
  }
}

/**
 * @param {string} icon of the host's
 * @param {string} text for people who hear the page, and those who point at it
 * @param {(button: HTMLElement) => void} act
 */
function iconButton(icon, text, act) {
  const button = makeButton(`locksmith-icon pi ${icon}`, "", () => act(button));
  button.title = text;
  button.setAttribute("aria-label", text);
  return button;
}

/** @param {import("./line.mjs").Line} line */
function makeBadge(line) {
  const badge = make("span", `locksmith-badge ${line.state ? `locksmith-${line.state}` : "locksmith-untold"}`, line.badge);
  badge.hidden = !line.badge;
  badge.setAttribute("role", "img");
  badge.setAttribute("aria-label", spoken(line));
  badge.title = [...line.cautions, ...line.sentences, ...line.more].join("\n");
  return badge;
}
