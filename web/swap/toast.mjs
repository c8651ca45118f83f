/** Tells of a whole workflow, for which no node is the place. */

import { app } from "../../../scripts/app.js";

const SECONDS_SHOWN = { success: 5, info: 10, warn: 15 };

/**
 * @param {"success" | "info" | "warn"} severity
 * @param {string} summary
 * @param {string} [detail]
 */
export function toast(severity, summary, detail) {
  app.extensionManager.toast.add({ severity, summary, detail, life: SECONDS_SHOWN[severity] * 1000 });
}
