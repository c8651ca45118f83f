/** What the front end of this pack says, by language; English where a language has no words. */

import { app } from "../../scripts/app.js";

/** @type {Record<string, Record<string, string>>} */
const WORDS = {
  en: {
    report: "Report of {node}",
    verdict: "Verdict of {node}",
    copy: "Copy",
    copyHint: "Copy the whole report",
    copied: "Copied",
    notCopied: "Not copied",
    cut: "The report goes on. Copy takes the whole of it.",
  },
  zh: {
    report: "{node}的报告",
    verdict: "{node}的结论",
    copy: "复制",
    copyHint: "复制完整报告",
    copied: "已复制",
    notCopied: "未能复制",
    cut: "报告未完。“复制”会复制全部内容。",
  },
};

/**
 * The text for a key in the front end's language, with {name} replaced by fill.name.
 *
 * @param {string} key
 * @param {Record<string, string>} [fill]
 * @returns {string}
 */
export function say(key, fill = {}) {
  const locale = String(app.extensionManager.setting.get("Comfy.Locale") ?? "en");
  const words = WORDS[locale] ?? WORDS[locale.split("-")[0]] ?? WORDS.en;
  return (words[key] ?? WORDS.en[key]).replace(/\{(\w+)\}/g, (_, name) => fill[name] ?? "");
}
