/* Prints the bytes of a .wat file in base64: node tests/js/assemble.mjs FILE */
import { readFileSync } from "node:fs";
import wabt from "wabt";

const { parseWat } = await wabt();
const module = parseWat("kernel.wat", readFileSync(process.argv[2], "utf8"), { simd: true });
module.validate();
console.log(Buffer.from(module.toBinary({}).buffer).toString("base64"));
