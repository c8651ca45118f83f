/** Has the front end know what the parts say that are loaded when they are first wanted; each of them imports this. */

import { ENGLISH } from "./more_en.mjs";
import { CHINESE } from "./more_zh.mjs";
import { learn } from "./words.mjs";

learn({ en: ENGLISH, zh: CHINESE });
