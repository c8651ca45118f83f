/** Nodes that load LoRAs and are left as they are, and why. */

import { inputOf, linksInto, originOf } from "./graph.mjs";
import { Left } from "./loaders.mjs";

/** Loaders of a model, with the LoRAs that they load onto it. */
const INSIDE = [
  "Efficient Loader",
  "Eff. Loader SDXL",
  "easy fullLoader",
  "easy a1111Loader",
  "easy comfyLoader",
  "easy fluxLoader",
  "easy kolorsLoader",
  "easy hunyuanDiTLoader",
  "easy pixArtLoader",
  "easy cascadeLoader",
  "ttN tinyLoader",
  "ttN pipeLoader_v2",
  "ttN pipeLoaderSDXL_v2",
  "ttN pipeKSampler_v2",
  "ttN pipeKSamplerAdvanced_v2",
  "ttN pipeKSamplerSDXL_v2",
];
/** What finds LoRAs in a text, each by a grammar of its own. */
const BY_TEXT = [
  "LoRA Text Loader (LoraManager)",
  "LoraTagLoader",
  "easy loraPromptApply",
  "MultiLoraLoader-70bf3d77",
  "D2 Load Lora",
  "LoraSyntaxProcessor",
  "WildcardAndLoraSyntaxProcessor",
];
/** What loads onto models that are not ComfyUI's own. */
const OWN_MODELS = /^(Nunchaku\w*Lora|WanVideoLoraSelect|HyVideoLoraSelect|WanVideo Lora Select)/;
const NUNCHAKU = /^Nunchaku/;
const MODEL = "MODEL";

/**
 * Why a node that is no loader of LoRAs alone stays as it is; undefined where it loads none.
 *
 * @param {any} graph
 * @param {any} node
 * @param {string[]} listed LoRA files
 * @returns {Left | undefined}
 */
export function whyLeft(graph, node, listed) {
  const { type } = node;
  if (BY_TEXT.includes(type)) return new Left("swapText");
  if (OWN_MODELS.test(type)) return new Left("swapOwnModel");
  return INSIDE.includes(type) && namesLora(graph, node, listed) ? new Left("swapInside") : undefined;
}

/**
 * Whether a loader of a model takes a list of LoRAs, has one chosen, or has a text that names one; Efficiency's read no texts.
 *
 * @param {any} graph
 * @param {any} node
 * @param {string[]} listed
 */
function namesLora(graph, node, listed) {
  const takesList = linksInto(graph, node).some((link) => inputOf(node, link).endsWith("lora_stack"));
  const isTag = (/** @type {any} */ value) => !/^Eff/.test(node.type) && String(value).includes("<lora:");
  return takesList || Object.values(node.widgets_values ?? {}).some((value) => listed.includes(value) || isTag(value));
}

/**
 * Whether a node's model comes from a loader of Nunchaku's, as far as that can be seen in its graph.
 *
 * @param {any} graph
 * @param {any} node
 * @param {any[]} [seen]
 * @returns {boolean}
 */
export function isOnNunchaku(graph, node, seen = []) {
  return linksInto(graph, node).some((link) => {
    const before = link.get("type") === MODEL && originOf(graph, link);
    if (!before || seen.includes(before)) return false;
    return NUNCHAKU.test(before.type) || isOnNunchaku(graph, before, [...seen, before]);
  });
}
