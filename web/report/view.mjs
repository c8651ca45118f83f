/** The box a node shows a long report in, loaded after its first run: badge and verdict above, the rest below, and buttons for it. */

import { copyButton, make, makeButton } from "../shared/dom.mjs";
import { fromMarkdown, fromPlainText } from "../shared/markup.mjs";
import { makeBadge } from "./badge.mjs";
import { outcomeOf } from "./outcome.mjs";
import "./text.mjs";
import { loadDetails, showDetails } from "./status.mjs";
import { say, tell, translationsOf } from "../i18n/words.mjs";
import "../i18n/more.mjs";

/** Longer reports are cut on the screen: rendering costs time, and nobody scrolls through more. */
const MAX_SHOWN = 200_000;

/** @typedef {"markdown" | "text"} Body how a report is shown: rendered, or as it stands */

export class ReportView {
  /** @param {Body} kind */
  constructor(kind) {
    this.kind = kind;
    this.text = ""; // as the server has it, in English
    this.shown = ""; // in the front end's language
    this.file = "";
    this.outcome = /** @type {import("./outcome.mjs").Outcome | null} */ (null);
    this.head = make("div", "locksmith-head");
    this.caution = make("p", "locksmith-caution");
    this.verdict = make("div", "locksmith-verdict");
    this.body = make("div", "locksmith-body");
    this.element = make("section", `locksmith-report locksmith-box locksmith-as-${kind}`, this.head, this.body);
    for (const part of [this.verdict, this.body]) makeReachable(part);
  }

  /**
   * Show a report.
   *
   * @param {any} output of the node: the report as text, its verdict first, and for programs
   * @param {string} title of the node, for people who hear the page
   * @param {string} file as the loras folders list it; "" if that is not known
   */
  show(output, title, file) {
    this.text = output.text[0];
    this.shown = tell(this.text, translationsOf(output));
    this.outcome = outcomeOf(output);
    this.file = file;
    if (this.outcome) this.outcome.file = file;
    this.fillHead(title);
    this.fillBody();
    this.element.setAttribute("aria-label", say("report", { node: title }));
    this.verdict.setAttribute("aria-label", say("verdict", { node: title }));
    this.body.setAttribute("aria-label", say("report", { node: title }));
  }

  /** @param {string} title */
  fillHead(title) {
    const { outcome, shown: text } = this;
    const copy = copyButton("locksmith-copy", say("copy"), text, this.element);
    copy.title = say("copyHint");
    const gains = outcome?.gains.join(", ") ?? "";
    const parts = [makeBadge(outcome), Object.assign(make("span", "locksmith-gains", gains), { title: gains }), copy];
    if (outcome?.state) {
      parts.push(makeButton("locksmith-copy", say("panelDetails"), () => void showDetails(title, outcome, text)));
      loadDetails().catch(() => {}); // it is got again when it is wanted
    }
    const [caution] = outcome?.cautions ?? [];
    this.caution.textContent = this.caution.title = caution ?? "";
    this.caution.hidden = !caution;
    this.head.replaceChildren(make("div", "locksmith-top", ...parts), this.caution, this.verdict);
  }

  fillBody() {
    const shown = this.shown.slice(0, MAX_SHOWN);
    const parts = this.kind === "markdown" ? fromMarkdown(shown) : fromPlainText(shown);
    this.verdict.replaceChildren(parts.firstElementChild ?? "");
    this.body.replaceChildren(parts);
    if (shown !== this.shown) this.body.append(make("p", "locksmith-cut", say("cut")));
    this.body.hidden = !this.body.hasChildNodes();
    this.body.scrollTop = 0;
  }

  get isReport() {
    return true;
  }
}

/** @param {HTMLElement} part that can be scrolled, by keys too */
function makeReachable(part) {
  part.tabIndex = 0;
  part.setAttribute("role", "group");
}
