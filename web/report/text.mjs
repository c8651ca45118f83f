/** Gives texts of reports their look; who shows one imports this, and waits for it. */

import { adoptStyle } from "../shared/dom.mjs";

await adoptStyle("./text.css", import.meta.url);
