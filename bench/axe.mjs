// Checks pages for what keeps readers out: axe-core in chromium, on a phone and a desktop, light and dark; nothing may
// scroll the page sideways. Exits with 1 on a serious or critical finding. The tests check the same without a browser.
//
//     cp bench/axe.mjs /tmp && cd /tmp && npm install axe-core playwright-core
//     CHROMIUM=/usr/bin/chromium node axe.mjs PAGE.html...
import { chromium } from 'playwright-core';
import { readFileSync } from 'node:fs';
import { pathToFileURL } from 'node:url';
import { createRequire } from 'node:module';
const axe = readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');
const browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium', args: ['--no-sandbox'] });
let worst = 0;
for (const file of process.argv.slice(2))
  for (const width of [390, 1280])
    for (const colorScheme of ['light', 'dark']) {
      const context = await browser.newContext({ viewport: { width, height: 900 }, colorScheme, bypassCSP: true });
      const page = await context.newPage();
      await page.goto(pathToFileURL(file).href);
      await page.evaluate(() => document.querySelectorAll('details').forEach(one => { one.open = true; }));
      await page.evaluate(axe);
      const { violations, passes } = await page.evaluate(() => axe.run());
      const sideways = await page.evaluate(() => document.documentElement.scrollWidth > window.innerWidth);
      console.log(`${file} ${width} ${colorScheme}: ${violations.length} violations, ${passes.length} rules passed${sideways ? ', SCROLLS SIDEWAYS' : ''}`);
      for (const { id, impact, help, nodes } of violations)
        console.log(`  ${impact} ${id}: ${help} (${nodes.length}) ${nodes.slice(0, 2).map(n => n.html.slice(0, 160)).join(' | ')}`);
      if (sideways || violations.some(({ impact }) => ['serious', 'critical'].includes(impact))) worst = 1;
      await context.close();
    }
await browser.close();
process.exit(worst);
