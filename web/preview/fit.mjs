/** Tells in words what a LoRA file is, and whether it fits the model it is wired to. */

import { SIGNS } from "../report/outcome.mjs";
import { trainerOf } from "../shared/names.mjs";
import { asSentence, say, tell } from "../i18n/words.mjs";

/**
 * `text` is for a badge; `words` are "" where there is nothing to say against or for the file.
 *
 * @typedef {{state: "" | "good" | "part" | "bad", text: string, words: string}} Fit
 */

/** The states of a library's row of which not all modules load. */
const SHORT = ["bad", "partly", "untold"];

/**
 * Whether a file fits: the model that is wired, else what is known of its family.
 *
 * @param {any} answer of the route "file"; undefined while it is on its way, null where the file is not there
 * @param {string[]} [cautions] what a run has found doubtful about the file, in the front end's language
 * @returns {Fit}
 */
export function fitOf(answer, cautions = []) {
  if (answer === undefined) return { state: "", text: "", words: "" };
  if (answer === null) return { state: "bad", text: `\u2717 ${say("stackMissing")}`, words: say("stackMissingHint") };
  const { error, total, losses, fit, pickled, translations } = answer;
  const [caution = tell(answer.cautions?.[0] ?? "", translations)] = cautions;
  if (error && pickled) return doubtful({ state: "", text: say("stackPickled"), words: say("previewPickled") }, caution);
  if (error) return { state: "bad", text: `\u2717 ${say("stackUnreadable")}`, words: asSentence(tell(error, translations)) };
  const why = losses[0] ? asSentence(tell(losses[0], translations)) : say("previewNoLora");
  if (!total) return { state: "bad", text: `\u2717 ${say("stackNoLora")}`, words: why };
  const told = doubtful(fit ? fitOfModel(fit, translations) : fitOfFamily(answer), caution);
  const besides = [answer.contradiction, fit?.stage].map((text) => tell(text ?? "", translations)).filter(Boolean).join(" ");
  return besides ? { ...told, words: told.words ? `${asSentence(told.words)} ${besides}` : besides } : told;
}

/**
 * @param {Fit} fit
 * @param {string} caution
 * @returns {Fit} amber, where nothing worse is to be said than that the file may not come out as trained
 */
function doubtful(fit, caution) {
  if (!caution || fit.state === "bad" || fit.state === "part") return fit;
  return { state: "part", text: `! ${fit.text.replace("\u2713 ", "")}`, words: caution };
}

/**
 * @param {any} fit with the model that is wired
 * @param {import("../i18n/words.mjs").Translations} translations
 * @returns {Fit}
 */
function fitOfModel(fit, translations) {
  const { state, placed, total, mismatch, lacking, model } = fit;
  if (fit.needs_clip) return { state: "", text: "CLIP", words: say("previewNeedsClip") };
  if (mismatch) return { state, text: `\u2717 ${placed}/${total}`, words: say("previewMismatch", { mismatch: tell(mismatch, translations) }) };
  if (state !== "good") return { state, text: `${SIGNS[/** @type {"part" | "bad"} */ (state)]} ${placed}/${total}`, words: tell(lacking, translations) || say("previewPart", fit) };
  return { state, text: `\u2713 ${total}`, words: say(model ? "previewFits" : "previewFitsAny", fit) };
}

/**
 * @param {any} answer
 * @returns {Fit} amber at worst, as the model may be another
 */
function fitOfFamily({ made_for: family, state, placed, total }) {
  if (SHORT.includes(state)) return { state: "part", text: `! ${placed}/${total}`, words: say("previewPlaced", { placed, total }) };
  return { state: "", text: family || `${total}`, words: "" };
}

/**
 * Model, trainer, adapters and size of a file; "" for one that holds no LoRA.
 *
 * @param {any} answer of the route "file"
 */
export function aboutFile({ error, made_for: madeFor, trainer, trainer_guessed: guessed, kinds, rank, total, fit, translations }) {
  if (error || !total) return "";
  const family = tell(madeFor, translations) || (fit?.placed && fit.state === "good" ? fit.model : "");
  const adapters = [kinds, rank && say("previewRank", { rank: tell(rank, translations) })].filter(Boolean).join(" ");
  const known = tell(trainerOf({ trainer }), translations);
  const writer = guessed && known ? say("previewLooksLike", { trainer: known }) : known;
  return [family || say("previewNoFamily"), writer, adapters, say("previewModules", { total })].filter(Boolean).join(" \u00b7 ");
}
