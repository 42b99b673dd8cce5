// Checks pages for what keeps readers out: axe-core in chromium, on a phone and a desktop, light and dark. Nothing may
// scroll the page sideways. Exits with 1 on any finding, or when a page scrolls. The tests check much of it without a browser.
//
// The two packages are looked for in the folder where the command is given, and are not kept here:
//
//     mkdir -p /tmp/axe && cd /tmp/axe && npm install axe-core playwright-core
//     node REPOSITORY/bench/axe.mjs FILE_OR_URL...
//
// A browser other than /usr/bin/chromium: CHROMIUM=/path/to/one. Pictures of the whole pages: PICTURES=FOLDER.
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';

const installed = createRequire(join(process.cwd(), 'here'));
const { chromium } = installed('playwright-core');
const axe = readFileSync(installed.resolve('axe-core/axe.min.js'), 'utf8');
const { CHROMIUM = '/usr/bin/chromium', PICTURES } = process.env;

const named = process.argv.slice(2);
if (!named.length) throw new Error('no page is named: node axe.mjs FILE_OR_URL...');
const browser = await chromium.launch({ executablePath: CHROMIUM, args: ['--no-sandbox'] });
let found = 0;
for (const name of named)
  for (const width of [390, 1280])
    for (const colorScheme of ['light', 'dark']) {
      const context = await browser.newContext({ viewport: { width, height: 900 }, colorScheme, bypassCSP: true });
      const page = await context.newPage();
      await page.goto(/^\w+:\/\//.test(name) ? name : pathToFileURL(name).href);
      await page.evaluate(() => document.querySelectorAll('details').forEach(one => { one.open = true; }));
      await page.evaluate(axe);
      const { violations, passes } = await page.evaluate(() => axe.run());
      const sideways = await page.evaluate(() => document.documentElement.scrollWidth > window.innerWidth);
      console.log(`${name} ${width} ${colorScheme}: ${violations.length} findings, ${passes.length} rules passed${sideways ? ', SCROLLS SIDEWAYS' : ''}`);
      for (const { id, impact, help, nodes } of violations) {
        console.log(`  ${impact} ${id}: ${help} (${nodes.length})`);
        for (const { target, html } of nodes.slice(0, 4)) console.log(`    ${target.join(' ')}: ${html.slice(0, 160)}`);
      }
      if (PICTURES) {
        const path = join(PICTURES, `${name.replace(/^\w+:\/\/|\.html$/g, '').split('/').slice(-2).join('-')}-${width}-${colorScheme}.png`);
        await page.screenshot({ path, fullPage: true });
      }
      found += violations.length + sideways;
      await context.close();
    }
await browser.close();
process.exit(found ? 1 : 0);
