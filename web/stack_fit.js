/** Tells in a few characters, and in a tooltip's words, whether a file fits the model a stack is wired to. */

import { asSentence, say } from "./words.js";

/** @typedef {{state: "" | "good" | "part" | "bad", text: string, words: string}} Fit */

/**
 * @param {any} answer of the route "file"; undefined while it is on its way, null where the file is not there
 * @returns {Fit}
 */
export function fitOf(answer) {
  if (answer === undefined) return { state: "", text: "", words: "" };
  if (answer === null) return { state: "bad", text: `\u2717 ${say("stackMissing")}`, words: say("stackMissingHint") };
  const { error, total, losses } = answer;
  if (error) return { state: "bad", text: `\u2717 ${say("stackUnreadable")}`, words: asSentence(error) };
  if (!total) return { state: "bad", text: `\u2717 ${say("stackNoLora")}`, words: losses[0] ? asSentence(losses[0]) : say("previewNoLora") };
  const fit = answer.fit ? fitOfModel(answer.fit) : fitOfFamily(answer);
  return { ...fit, words: [fit.words, about(answer)].filter(Boolean).join("\n") };
}

/**
 * @param {any} fit with the model that is wired
 * @returns {Fit}
 */
function fitOfModel(fit) {
  const { placed, total, mismatch, model } = fit;
  const words = model ? "previewMismatch" : "previewMismatchAny";
  if (mismatch) return { state: "bad", text: `\u2717 ${placed} / ${total}`, words: say(words, fit) };
  if (placed < total) return { state: placed ? "part" : "bad", text: `! ${placed} / ${total}`, words: say("previewPart", fit) };
  return { state: "good", text: `\u2713 ${total}`, words: say(model ? "previewFits" : "previewFitsAny", fit) };
}

/**
 * @param {any} answer
 * @returns {Fit}
 */
function fitOfFamily({ made_for: family, placed, total }) {
  const words = placed < total ? say("previewPlaced", { placed, total }) : "";
  return { state: words ? "part" : "", text: words ? `! ${placed} / ${total}` : family || `${total}`, words };
}

/** @param {any} answer */
function about({ made_for: family, trainer, kinds, rank, total }) {
  const adapters = [kinds, rank && say("previewRank", { rank })].filter(Boolean).join(" ");
  return [family || say("previewNoFamily"), trainer, adapters, say("previewModules", { total })].filter(Boolean).join(" \u00b7 ");
}
