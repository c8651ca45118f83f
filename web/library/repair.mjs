/** Mends many files of the library: tells first what each would become, then does it, and says what became of it. */

import { make, makeButton } from "../shared/dom.mjs";
import { ask, order } from "../shared/server.mjs";
import { labelled, offerModels } from "./copy.mjs";
import { makeIcon, makeMark } from "./words.mjs";
import { asSentence, say, tell } from "../i18n/words.mjs";
import "../i18n/more.mjs";

/**
 * What became of a file; `new`: the file that was or would be written; `families`: among which a person has to choose, all if empty.
 *
 * @typedef {{file: string, end: string, told: string, new: string, needs_model: boolean, families: string[]}} Result
 */

/** What there may be of a file in the order it is told, with its sign: "model" is "refused" that waits for a choice. */
const ENDS = /** @type {const} */ (["repaired", "in_part", "model", "refused", "failed", "exists", "sound"]);
/** @type {Record<string, [string, string]>} words of the dry run, and of the run */
const END_WORDS = {
  repaired: ["repairWould", "repairDone"], in_part: ["repairWouldPart", "repairDonePart"], model: ["repairModel", "repairModel"],
  refused: ["repairRefused", "repairRefused"], failed: ["repairFailed", "repairFailed"], exists: ["repairExists", "repairExists"],
  sound: ["repairSound", "repairSound"],
}; // prettier-ignore
/** The state whose mark an end has. @type {Record<string, string>} */
const MARKS = { repaired: "good", in_part: "partly", model: "untold", refused: "bad", failed: "unreadable", exists: "mended", sound: "good" };
const PAUSE = 250; // milliseconds between two questions
const PAGE = 200; // results shown at a time

export class RepairPanel {
  dialect = make("select", "shelf-field");
  place = make("select", "shelf-field");
  drop = make("input", "");
  told = make("p", "shelf-told");
  progress = make("progress", "");
  counts = make("div", "shelf-legend");
  list = make("ul", "shelf-results");

  /**
   * @param {string[]} names of the files
   * @param {{onClose: () => void, onDone: () => void}} around
   */
  constructor(names, around) {
    this.names = names;
    this.around = around;
    /** @type {Result[]} */
    this.results = [];
    /** @type {Record<string, Record<string, string>>} */
    this.translations = {};
    /** @type {Record<string, string>} file -> the model that was chosen for it */
    this.models = {};
    /** @type {Record<string, string>} */
    this.titles = {};
    /** @type {AbortController | undefined} */
    this.waiting = undefined;
    this.running = this.dryRun = true; // it begins with a dry run
    this.stopped = false;
    this.starts = 0;
    /** @type {Promise<any>} */
    this.begun = Promise.resolve();
    this.total = 0;
    this.shown = "";
    this.most = PAGE;
    this.again = makeButton("shelf-button", say("repairDry"), () => void this.start(true));
    this.act = makeButton("shelf-button shelf-first", "", () => void this.start(false));
    this.stop = makeButton("shelf-button", say("repairStop"), () => void this.cancel());
    this.more = makeButton("shelf-link", say("repairMore"), () => this.list.append(...this.rowsFrom((this.most += PAGE) - PAGE)));
    this.heading = make("h3", "", say("repairTitle", { count: names.length.toLocaleString() }));
    this.heading.tabIndex = -1;
    this.told.setAttribute("role", "status");
    this.progress.setAttribute("aria-label", say("repairProgress"));
    this.counts.setAttribute("role", "group");
    this.counts.setAttribute("aria-label", say("repairCounts"));
    this.list.setAttribute("aria-label", say("repairResults"));
    this.drop.type = "checkbox";
    this.element = make("section", "shelf-repair", ...this.lay());
    this.element.setAttribute("aria-label", say("repairTitle", { count: names.length.toLocaleString() }));
    for (const field of [this.dialect, this.place, this.drop]) field.addEventListener("change", () => void this.start(true));
    this.update();
  }

  lay() {
    const close = makeIcon("pi-times", say("repairClose"), () => this.around.onClose());
    const head = make("div", "shelf-details-head", this.heading, close);
    const note = make("p", "shelf-faint", say("repairNote"));
    const drop = make("label", "shelf-check", this.drop, say("repairDrop"));
    const fields = make("div", "shelf-repair-fields", labelled("libraryDialect", this.dialect), labelled("repairPlace", this.place));
    const actions = make("div", "shelf-actions", this.act, this.stop, this.again);
    return [head, note, fields, drop, actions, this.progress, this.told, this.counts, this.list, this.more];
  }

  /** Offer what there is to choose, and tell what would become of the files; or go on telling of a run that goes on. */
  async begin() {
    this.heading.focus({ preventScroll: true });
    try {
      const [choices, now] = await Promise.all([ask("repair_choices"), ask("repair")]);
      this.titles = choices.models;
      const title = (/** @type {string} */ name) => (name === choices.native ? say("repairNative", { name }) : name);
      this.dialect.append(...choices.dialects.map((/** @type {string} */ name) => new Option(title(name), name)));
      this.dialect.value = choices.native;
      this.place.append(new Option(say("repairBeside"), "beside"), new Option(say("repairFolder", { folder: choices.folder }), "folder"));
      if (isWriting(now)) await this.follow(now);
      else await this.start(true);
    } catch (fault) {
      this.fail(fault);
    }
  }

  /**
   * Have a dry run that nobody looks at any longer end. What writes, as for another tab, goes on.
   *
   * @returns {Promise<any>} what the server tells then
   */
  async ended() {
    let now = await ask("repair");
    if (now.running && !isWriting(now)) now = await order("repair_stop", {});
    for (; now.running && !isWriting(now); now = await ask("repair")) await pause();
    return now;
  }

  /** @param {boolean} dryRun */
  async start(dryRun) {
    const start = (this.starts += 1);
    this.waiting?.abort();
    this.results = [];
    this.dryRun = dryRun;
    this.running = true;
    this.stopped = false;
    this.update();
    const wish = {
      names: this.names, dialect: this.dialect.value, place: this.place.value, drop: this.drop.checked, models: this.models,
      dry_run: dryRun,
    }; // prettier-ignore
    // One after another, as the server has one run at a time; of several that are wanted the last counts.
    this.begun = this.begun.then(async () => {
      if (start !== this.starts) return;
      const now = await this.ended();
      if (start !== this.starts) return;
      return isWriting(now) ? now : order("repair", wish);
    });
    try {
      const answer = await this.begun;
      if (answer && start === this.starts) await this.follow(answer);
    } catch (fault) {
      this.begun = Promise.resolve();
      this.fail(fault);
    }
  }

  /**
   * Take what an answer tells, and ask on until the run is at its end.
   *
   * @param {any} answer
   */
  async follow(answer) {
    this.waiting?.abort();
    const { signal } = (this.waiting = new AbortController());
    const { run } = answer;
    this.results = [];
    this.dryRun = answer.dry_run;
    for (;;) {
      if (signal.aborted || answer.run !== run) return;
      for (const [name, texts] of Object.entries(answer.translations ?? {})) this.translations[name] = { ...this.translations[name], ...texts };
      this.results.push(...answer.results);
      [this.running, this.total, this.stopped] = [answer.running, answer.total, answer.stopped];
      this.update();
      if (!answer.running) break;
      await pause();
      if (signal.aborted) return;
      answer = await ask("repair", { since: this.results.length }, signal);
    }
    if (!this.dryRun && this.results.some(({ end }) => end === "repaired" || end === "in_part")) this.around.onDone();
  }

  /** @param {unknown} fault */
  fail(fault) {
    if (fault instanceof DOMException && fault.name === "AbortError") return;
    this.running = false;
    this.update();
    this.told.textContent = fault instanceof Error ? fault.message : String(fault);
  }

  async cancel() {
    this.told.textContent = say("repairStopping");
    try {
      await order("repair_stop", {});
    } catch (fault) {
      this.fail(fault);
    }
  }

  /** Escape: not in the middle of the work. */
  leave() {
    if (this.dryRun || !this.running) this.around.onClose();
  }

  /** Let go of the page; a run that writes goes on. */
  end() {
    this.starts += 1; // none that is still to begin does
    this.waiting?.abort();
    if (this.running && this.dryRun) void order("repair_stop", {}).catch(() => {});
    this.element.remove();
  }

  update() {
    const { running, dryRun, results } = this;
    const focused = document.activeElement;
    const counts = new Map(ENDS.map((end) => [/** @type {string} */ (end), 0]));
    for (const result of results) counts.set(endOf(result), (counts.get(endOf(result)) ?? 0) + 1);
    const able = (counts.get("repaired") ?? 0) + (counts.get("in_part") ?? 0);
    this.act.textContent = say("repairNow", { count: able.toLocaleString() });
    this.act.hidden = !dryRun;
    this.act.disabled = running || !able;
    this.stop.hidden = !running;
    this.again.hidden = running;
    for (const field of [this.dialect, this.place, this.drop]) field.disabled = running && !dryRun;
    this.progress.hidden = !running;
    this.progress.max = this.total || this.names.length || 1;
    this.progress.value = results.length;
    this.tellStatus(able);
    this.tellCounts(counts);
    this.list.replaceChildren(...this.rowsFrom(0));
    // A button that goes away while it has the focus would take the keys with it.
    if (focused instanceof HTMLElement && focused.hidden && this.element.contains(focused)) this.heading.focus({ preventScroll: true });
  }

  /** @param {number} able how many files were written, or would be */
  tellStatus(able) {
    const numbers = { done: this.results.length.toLocaleString(), total: (this.total || this.names.length).toLocaleString() };
    const count = { count: able.toLocaleString() };
    const [running, ended] = this.dryRun ? ["repairReading", "repairRead"] : ["repairWriting", "repairWritten"];
    const told = this.running ? say(running, numbers) : say(ended, { ...numbers, ...count });
    this.told.textContent = !this.running && this.stopped ? `${told} ${say("repairStopped")}` : told;
  }

  /** @param {Map<string, number>} counts */
  tellCounts(counts) {
    if (this.shown && !counts.get(this.shown)) this.shown = "";
    const focused = this.counts.querySelector(":focus");
    const chips = [...counts].filter(([, count]) => count).map(([end, count]) => this.makeChip(end, count));
    this.counts.replaceChildren(...chips);
    if (focused instanceof HTMLElement) chips.find((chip) => chip.dataset.end === focused.dataset.end)?.focus();
  }

  /**
   * @param {string} end
   * @param {number} count
   */
  makeChip(end, count) {
    const chip = makeButton("shelf-chip", "", () => {
      this.shown = this.shown === end ? "" : end;
      this.most = PAGE;
      this.update();
    });
    chip.append(markOf(end), say(END_WORDS[end][Number(!this.dryRun)]), make("b", "", count.toLocaleString()));
    chip.setAttribute("aria-pressed", String(this.shown === end));
    chip.dataset.end = end;
    return chip;
  }

  /**
   * The next rows of the results, what asks for something first.
   *
   * @param {number} first
   */
  rowsFrom(first) {
    const wanted = this.shown ? this.results.filter((result) => endOf(result) === this.shown) : [...this.results];
    if (!this.shown) wanted.sort((a, b) => ENDS.indexOf(endOf(a)) - ENDS.indexOf(endOf(b)));
    this.more.hidden = wanted.length <= this.most;
    return wanted.slice(first, this.most).map((result) => this.makeRow(result));
  }

  /** @param {Result} result */
  makeRow(result) {
    const end = endOf(result);
    const state = make("span", "shelf-faint", say(END_WORDS[end][Number(!this.dryRun)]));
    const head = make("div", "shelf-result-head", markOf(end), make("bdi", "", result.file), state);
    const row = make("li", "", head, make("p", "shelf-told", asSentence(tell(result.told, this.translations))));
    if (result.new && end !== "exists") row.append(make("p", "shelf-faint", `→\u00a0${result.new}`));
    if (result.needs_model) row.append(this.makeModelChoice(result));
    return row;
  }

  /** @param {Result} result */
  makeModelChoice({ file, families }) {
    const select = make("select", "shelf-field");
    const titles = families.length ? Object.fromEntries(families.map((name) => [name, this.titles[name] ?? name])) : this.titles;
    offerModels(select, titles);
    select.value = this.models[file] ?? "";
    select.setAttribute("aria-label", say("repairModelOf", { file }));
    select.addEventListener("change", () => {
      if (select.value) this.models[file] = select.value;
      else delete this.models[file];
      this.told.textContent = say("repairAgain");
    });
    return make("label", "shelf-result-model", make("span", "", say("libraryBaseModel")), select);
  }
}

/** @param {Result} result */
function endOf({ end, needs_model }) {
  return /** @type {typeof ENDS[number]} */ (needs_model ? "model" : end);
}

/** @param {string} end */
function markOf(end) {
  return makeMark(MARKS[end]);
}

/** @param {any} answer of the server, about the run that there is */
function isWriting({ running, dry_run: dryRun }) {
  return running && !dryRun;
}

function pause() {
  return new Promise((done) => setTimeout(done, PAUSE));
}
