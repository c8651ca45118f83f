/** Keeps up with the server's scan of the loras folders: rows as they come. */

import { prepare } from "./rows.mjs";
import { ask } from "../shared/server.mjs";
import { asSentence, tell, tellAll } from "../i18n/words.mjs";

/** @typedef {import("./rows.mjs").Row} Row */

const PAUSE = 250; // milliseconds between two questions while the server reads
const PART = 1000; // rows of an answer: as many as are taken without a stutter
const DRAW = 500; // milliseconds between two changes that are told while more rows come

export class Shelf {
  /** @param {() => void} changed called whenever something here did */
  constructor(changed) {
    this.changed = changed;
    /** @type {Row[]} of the scan as far as it is, then those of the one before it */
    this.rows = [];
    /** @type {string[]} the dialects a file can be written in */
    this.dialects = [];
    this.done = this.total = 0;
    this.running = true; // until the server says otherwise
    this.fault = "";
    this.asked = false;
    this.told = -Infinity; // when a change was told
    /** @type {Row[]} of the newest scan */
    this.fresh = [];
    /** @type {unknown} */
    this.scan = undefined;
    /** @type {{scan: unknown, rows: Row[]}} the scan before it, as far as it was known */
    this.before = { scan: undefined, rows: [] };
    /** @type {AbortController | undefined} */
    this.waiting = undefined;
  }

  /** Have the rows the server has already, and then what changed since. */
  async open() {
    const known = this.asked || (await this.follow({}));
    if (known) await this.follow({ refresh: 1 });
  }

  /** Have the folders read again. */
  async refresh() {
    await this.follow({ refresh: 1 });
  }

  /** Stop asking; the server goes on. */
  stop() {
    this.waiting?.abort();
    this.waiting = undefined;
  }

  /**
   * Ask until the scan is at its end.
   *
   * @param {{refresh?: number}} question
   * @returns {Promise<boolean>} whether the server had been at its end before it was asked
   */
  async follow(question) {
    this.stop();
    const waiting = (this.waiting = new AbortController());
    let wasAtEnd = true;
    try {
      for (let rounds = 0; ; rounds += 1) {
        const since = this.fresh.length;
        const answer = await ask("library", { since, most: PART, ...(rounds ? {} : question) }, waiting.signal);
        if (waiting.signal.aborted) return false;
        this.take(answer, since);
        wasAtEnd &&= !answer.running;
        if (!this.running) break;
        if (this.fresh.length >= this.done) await new Promise((done) => setTimeout(done, PAUSE));
        if (waiting.signal.aborted) return false;
      }
    } catch (fault) {
      if (waiting.signal.aborted) return false;
      this.fault = fault instanceof Error ? fault.message : String(fault);
      this.running = false;
    }
    this.changed();
    return wasAtEnd && !this.fault;
  }

  /**
   * @param {any} answer
   * @param {number} since
   */
  take(answer, since) {
    this.fault = asSentence(tell(answer.error ?? "", answer.translations));
    this.asked = true;
    const another = answer.scan !== this.scan;
    if (another) this.before = { scan: this.scan, rows: this.fresh };
    this.scan = answer.scan;
    if (another) this.fresh = [];
    if (!another || !since) this.fresh.push(...answer.rows.map((/** @type {any} */ row) => prepare(inLanguage(row, answer.translations)))); // else these are not the first: ask anew from 0
    if (answer.before === this.before.scan) this.fresh.push(...this.before.rows.slice(this.fresh.length, answer.same));
    this.done = answer.done;
    this.total = answer.total;
    this.dialects = answer.dialects ?? this.dialects;
    this.running = answer.running || this.fresh.length < answer.done;
    const hadRows = this.rows.length > 0;
    if (!this.isShown()) this.rows = this.running ? this.withThoseBefore() : this.fresh;
    const now = performance.now();
    if (this.running && hadRows && now - this.told < DRAW) return;
    this.told = now;
    this.changed();
  }

  /** Whether the newest rows stand first already, and alone at the end: then the list is the same one, and nobody sorts it anew. */
  isShown() {
    return this.fresh.every((row, index) => row === this.rows[index]) && (this.running || this.fresh.length === this.rows.length);
  }

  /** While a scan runs the rows of the one before stay, so that the list does not jump. */
  withThoseBefore() {
    const seen = new Set(this.fresh.map((row) => row.file));
    return [...this.fresh, ...this.rows.filter((row) => !seen.has(row.file))];
  }
}

/**
 * A row with what is shown of it in the front end's language.
 *
 * @param {import("./rows.mjs").Told} row
 * @param {import("../i18n/words.mjs").Translations} translations
 * @returns {import("./rows.mjs").Told}
 */
function inLanguage(row, translations) {
  const [gains, losses, cautions] = [row.gains, row.losses, row.cautions].map((texts) => tellAll(texts, translations));
  const told = [row.made_for, row.trainer, String(row.rank), row.contradiction ?? "", row.error];
  const [made_for, trainer, rank, contradiction, error] = tellAll(told, translations);
  return { ...row, made_for, trainer, rank, gains, losses, cautions, contradiction, error };
}
