// A JavaScript app and its world into a component: node componentize-js.mjs APP.js OUT.wasm WORLD WIT
import { readFileSync, writeFileSync } from 'node:fs';
import { componentize } from '@bytecodealliance/componentize-js';

const [app, out, world, wit] = process.argv.slice(2);
const { component } = await componentize(readFileSync(app, 'utf8'), {
  witPath: wit, worldName: world, disableFeatures: ['http', 'fetch-event'], // fetch would want wasi:http
});
writeFileSync(out, component);
