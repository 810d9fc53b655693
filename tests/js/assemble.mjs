/* Prints the bytes of a .wat file in base64, as it is and with fused multiply-adds: node tests/js/assemble.mjs FILE */
import { readFileSync } from "node:fs";
import wabt from "wabt";

const { parseWat } = await wabt();
const features = { simd: true, relaxed_simd: true };
const plain = readFileSync(process.argv[2], "utf8");
const fused = plain.replaceAll(/\(f32x4\.add (\(local\.get \$\w+\)) \(f32x4\.mul (\(local\.get \$\w+\)) (\(local\.get \$\w+\))\)\)/g,
  "(f32x4.relaxed_madd $2 $3 $1)");
for (const text of [plain, fused]) {
  const module = parseWat("kernel.wat", text, features);
  module.validate(features);
  console.log(Buffer.from(module.toBinary({}).buffer).toString("base64"));
}
