/** Tells in one line what a run will make of a file, or has made of it: in the same words for the same facts. */

import { aboutFile, fitOf } from "../preview/fit.mjs";
import { trainerOf } from "../shared/names.mjs";
import { shortly, SIGNS } from "./outcome.mjs";
import { say, tell, tellAll } from "../i18n/words.mjs";

/**
 * `badge`: what loads, "" where that is not known; `sentences`: what is wrong and what to do; `more`: what there is to know besides.
 *
 * @typedef {{state: "" | "good" | "part" | "bad", badge: string, facts: string[], cautions: string[], sentences: string[], more: string[]}} Line
 */

/**
 * Before a run.
 *
 * @param {any} answer of the route "file"
 * @returns {Line}
 */
export function lineOfFile(answer) {
  const { error, total, placed, translations } = answer;
  const { state, text, words } = fitOf(answer);
  const fit = !error && total && answer.fit?.total ? answer.fit : null;
  if (error || !total) {
    const badge = state ? text : "";
    return { state, badge, facts: state ? [] : [text], cautions: [], sentences: state ? [words] : [], more: [words] };
  }
  const counts = { ...(fit ?? { placed, total }), state: state || "good" };
  const cautions = state === "part" || state === "bad" ? tellAll(answer.cautions ?? [], translations) : [];
  const told = fit?.verdict ? whyOf(fit).map((sentence) => tell(sentence, translations)) : [words];
  const isShort = fit ? fit.state !== "good" : state && placed < total;
  const sentences = isShort || answer.fit?.needs_clip ? told : [];
  return {
    state,
    badge: state ? shortly(counts) : say("previewModules", { total }),
    facts: factsOf(tell(fit?.family || answer.made_for, translations), tell(trainerOf(answer), translations), { ...counts, stock: fit?.stock ?? answer.stock }, answer),
    cautions,
    sentences: [...sentences, ...besidesOf(answer)].filter((sentence) => sentence && !cautions.includes(sentence)),
    more: [sentences.length ? "" : words, aboutFile(answer)].filter(Boolean),
  };
}

/**
 * After a run.
 *
 * @param {import("./outcome.mjs").Outcome} outcome
 * @param {any} [answer] of the route "file", where the node names one
 * @returns {Line}
 */
export function lineOfRun(outcome, answer) {
  const { state, placed, total, mismatch, verdict, cautions, gains, files } = outcome;
  const isShort = mismatch || placed < total;
  const about = { ...answer, trainer_guessed: outcome.isGuessed };
  const facts = files ? [say("lineFiles", { count: files })] : factsOf(outcome.family, trainerOf(outcome), outcome, about);
  return {
    state,
    badge: state && shortly(outcome),
    facts: state ? facts : [verdict],
    cautions,
    sentences: [...(isShort ? whyOf(outcome) : []), ...(answer ? besidesOf(answer) : [])].filter(Boolean),
    more: [isShort ? "" : verdict, gains.join(", "), answer ? aboutFile(answer) : ""].filter(Boolean),
  };
}

/**
 * @param {{mismatch: string, lacking: string, verdict: string, remedy: string}} told
 * @returns {string[]} what is wrong, and what to do
 */
function whyOf({ mismatch, lacking, verdict, remedy }) {
  return [mismatch || lacking || verdict, remedy];
}

/**
 * @param {any} answer
 * @returns {string[]} what speaks against a file that no count tells
 */
function besidesOf({ contradiction, fit, translations }) {
  return [contradiction, fit?.stage].map((text) => tell(text ?? "", translations)).filter(Boolean);
}

/**
 * @param {string} family
 * @param {string} trainer
 * @param {{placed: number, stock?: number | null}} counts how many modules load, here and by the stock loader
 * @param {any} about kinds and rank of the adapters, and whether the trainer is a guess
 */
function factsOf(family, trainer, { placed, stock }, { trainer_guessed: isGuessed, kinds, rank, translations }) {
  const writer = trainer && isGuessed ? say("lineGuess", { trainer: shortened(trainer) }) : shortened(trainer);
  const adapters = [kinds, rank && say("previewRank", { rank: tell(rank, translations) })].filter(Boolean).join(" ");
  const told = stock == null ? "" : say("lineStock", { stock });
  const order = stock != null && stock < placed ? [told, writer] : [writer, told]; // a narrow node cuts off what is last
  return [shortened(family) || say("previewNoFamily"), ...order, adapters].filter(Boolean);
}

/** @param {string} title that may say more in brackets, which the line has no room for */
function shortened(title) {
  return title.replace(/ ?[(\uff08].*/, "");
}

/**
 * What people hear of a badge.
 *
 * @param {Line} line
 */
export function spoken({ badge, cautions }) {
  const [, sign, placed, total, rest = ""] = badge.match(/^(.) (\d+)\/(\d+)(?:: (.*))?$/) ?? [];
  if (!sign || !Object.values(SIGNS).includes(sign)) return badge;
  return [say("panelModulesLoad", { placed, total }), rest, cautions[0]].filter(Boolean).join(", ");
}
