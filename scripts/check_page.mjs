// Open a report.html in headless Chromium at the widths of phones and a desktop, light and dark. Fail if the page scrolls
// sideways, writes to the console, or requests anything from the network.
//   npm install puppeteer-core @sparticuz/chromium && node scripts/check_page.mjs runs/E/small/report.html [PICTURES]
import { mkdir } from "node:fs/promises";
import { basename, dirname, join, resolve } from "node:path";
import { pathToFileURL } from "node:url";
import chromium from "@sparticuz/chromium";
import puppeteer from "puppeteer-core";

const [page_file, pictures] = process.argv.slice(2);
if (!page_file) throw new Error("give a page: node scripts/check_page.mjs report.html [folder for screenshots]");
const SIZES = { small: [360, 800], phone: [390, 844], desk: [1280, 900] };
const problems = [];
const browser = await puppeteer.launch({ executablePath: process.env.CHROME ?? (await chromium.executablePath()), args: chromium.args, headless: "shell" });
for (const [size, [width, height]] of Object.entries(SIZES)) {
  for (const scheme of ["light", "dark"]) {
    const page = await browser.newPage();
    const report = (what) => problems.push(`${size}, ${scheme}: ${what}`);
    page.on("console", (message) => report(`console: ${message.text()}`));
    page.on("pageerror", (error) => report(`error: ${error.message}`));
    page.on("request", (request) => /^(file|data):/.test(request.url()) || report(`requests ${request.url()}`));
    await page.setViewport({ width, height, isMobile: width < 500, hasTouch: width < 500 });
    await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: scheme }]);
    await page.goto(pathToFileURL(resolve(page_file)).href, { waitUntil: "load" });
    const seen = await page.evaluate(() => ({
      wide: document.documentElement.scrollWidth - window.innerWidth,
      broken: [...document.images].filter((image) => !image.naturalWidth).length,
      ink: getComputedStyle(document.body).color,
      paper: getComputedStyle(document.body).backgroundColor,
    }));
    if (seen.wide > 0) report(`scrolls sideways by ${seen.wide} pixels`);
    if (seen.broken) report(`${seen.broken} images are not shown`);
    console.log(`${size} ${width}x${height} ${scheme}: ink ${seen.ink} on ${seen.paper}`);
    if (pictures) {
      await mkdir(pictures, { recursive: true });
      const name = basename(dirname(resolve(page_file)));
      await page.screenshot({ path: join(pictures, `${name}-${size}-${scheme}.png`), fullPage: true });
    }
    await page.close();
  }
}
await browser.close();
console.log(problems.length ? problems.join("\n") : "no problems");
process.exit(problems.length ? 1 : 0);
