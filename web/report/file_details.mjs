/** Opens the dialog of details for a file that did not run. */

import { aboutFile, fitOf } from "../preview/fit.mjs";
import { trainerOf } from "../shared/names.mjs";
import { questionOf } from "../preview/preview.mjs";
import { ask } from "../shared/server.mjs";
import { tell, tellAll } from "../i18n/words.mjs";
import { openDetails } from "./details.mjs";

/**
 * @param {string} file as the loras folders list it
 * @param {import("../preview/preview.mjs").Wiring} wiring what it is held against
 * @param {string} [layers] layer weights
 * @throws {import("../shared/server.mjs").Refusal}
 */
export async function openFileDetails(file, wiring, layers = "") {
  const answer = await ask("file", { full: 1, layers, ...questionOf(file, wiring) });
  const { translations } = answer;
  const name = file.slice(Math.max(file.lastIndexOf("/"), file.lastIndexOf("\\")) + 1);
  openDetails(name, outcomeOfFile(file, answer), tell(answer.markdown, translations) || tell(answer.error, translations));
}

/**
 * What can be said of a file before it runs, in the form of what a run tells.
 *
 * @param {string} file
 * @param {any} answer of the route "file", in full
 * @returns {import("./outcome.mjs").Outcome}
 */
function outcomeOfFile(file, answer) {
  const { fit, inspection, translations } = answer;
  const { state, words } = fitOf(answer);
  const { placed, total } = fit ?? answer;
  const nothing = { remedy: "", stockFails: [], categories: [], patterns: [], trained: [], untrained: [] };
  return {
    ...nothing,
    file: inspection ? file : "",
    verdict: words || aboutFile(answer),
    placed,
    total,
    state: fit && total ? state : "",
    mismatch: tell(fit?.mismatch ?? "", translations),
    lacking: tell(fit?.lacking ?? "", translations),
    gains: tellAll(answer.gains, translations),
    notes: [],
    cautions: tellAll(answer.cautions, translations),
    family: tell(answer.made_for, translations),
    trainer: tell(trainerOf(answer), translations),
    isGuessed: answer.trainer_guessed,
    stock: answer.stock,
    files: 0,
    strength: "",
    acts: "",
    inspection,
    layerWeights: answer.layer_weights ?? {},
    translations,
  };
}
