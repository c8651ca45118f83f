/** The setting that has every loader load LoRAs as this pack's do. The server keeps it, for it acts there; what the front end stores follows. */

import { app } from "../../../scripts/app.js";
import { ask, order, Refusal, whenServerIsBack } from "../shared/server.mjs";
import { say } from "../i18n/words.mjs";

const EVERY = "loralocksmith.every.loader";
const ROUTE = "every_loader";
const SHOWN = 8000; // milliseconds

/** @type {boolean | undefined} what the server said last */
let known;
let asked = false;
let wanted = false;
let isOrdering = false;

/** Show what the server has. */
async function show() {
  if (known !== undefined && app.extensionManager.setting.get(EVERY) !== known) {
    await app.extensionManager.setting.set(EVERY, known);
  }
}

async function follow() {
  try {
    known = (await ask(ROUTE)).on;
    await show();
  } catch (fault) {
    if (!(fault instanceof Refusal)) throw fault; // the server is away: asked again when it is back
  } finally {
    asked = true;
  }
}

/** Have the server do what is wanted last; one order at a time. */
async function turn() {
  if (isOrdering) return;
  isOrdering = true;
  try {
    while (wanted !== known) known = (await order(ROUTE, { on: wanted })).on;
  } catch (fault) {
    if (!(fault instanceof Refusal)) throw fault;
    app.extensionManager.toast.add({ severity: "warn", summary: say("everyNotTurned"), detail: fault.message, life: SHOWN });
    await show();
  } finally {
    isOrdering = false;
  }
}

/** Have the host call what stands here. */
export function register() {
  app.registerExtension({
    name: "loralocksmith.every",

    settings: [
      {
        id: EVERY,
        name: "Fix LoRAs in every loader",
        tooltip: "What any node loads by ComfyUI's own LoRA functions is placed and computed as Load and Fix LoRA does it. What the stock loader does rightly stays as it is. Acts on the server, for all its users; the next run of a loader counts.",
        category: ["LoRA Locksmith", "Loaders", "Every loader"],
        type: "boolean",
        defaultValue: false,
        /** @param {boolean} value */
        onChange(value) {
          wanted = value;
          if (asked) void turn();
        },
      },
    ],

    async setup() {
      whenServerIsBack(follow);
      await follow();
    },
  });
}
