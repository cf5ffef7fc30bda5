// Runs in a page at its end: what overflows, what cannot be read, whether picker and sorting work. Tells the frame
// around it.
addEventListener('load', () => {
  const bad = [];
  const say = (what) => { if (bad.length < 40) bad.push(what); };
  const label = (e) => e.tagName.toLowerCase() + (e.id ? '#' + e.id : '') + '.' + (e.getAttribute('class') || '') + ' "' + (e.textContent || '').trim().slice(0, 30) + '"';
  const root = document.documentElement;
  const overflow = () => { if (root.scrollWidth > root.clientWidth) {
    say('wider than the window: ' + root.scrollWidth + ' > ' + root.clientWidth);
    for (const e of document.querySelectorAll('body *')) {
      const r = e.getBoundingClientRect();
      if (r.right > root.clientWidth + 1 && !e.closest('.scroll')) say('beyond the edge: ' + label(e) + ' ' + Math.round(r.right));
    } } };
  const rgb = (c) => { const m = c.match(/[\d.]+/g).map(Number); if (c.startsWith('color(srgb')) return [m[0]*255, m[1]*255, m[2]*255, m[3] ?? 1]; return [m[0], m[1], m[2], m[3] ?? 1]; };
  const lum = (c) => { const f = c.slice(0, 3).map(v => { v /= 255; return v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; }); return .2126*f[0] + .7152*f[1] + .0722*f[2]; };
  const over = (a, b) => [0,1,2].map(i => a[i]*a[3] + b[i]*(1 - a[3])).concat(1);
  const ground = (e) => { const all = []; for (let n = e; n; n = n.parentElement) { const c = rgb(getComputedStyle(n).backgroundColor); all.push(c); if (c[3] === 1) break; } let c = [255,255,255,1]; for (const b of all.reverse()) c = over(b, c); return c; };
  let least = 99;
  const contrast = () => { for (const e of document.querySelectorAll('body *')) {
    const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    const r = e.getBoundingClientRect();
    if (!own || !r.width || !r.height || e.closest('script')) continue;
    const style = getComputedStyle(e);
    const ink = rgb(e instanceof SVGElement ? style.fill : style.color);
    const back = ground(e);
    const [a, b] = [lum(over(ink, back)), lum(back)].sort((x, y) => y - x);
    const ratio = (a + .05) / (b + .05);
    least = Math.min(least, ratio);
    if (ratio < 4.5) say('contrast ' + ratio.toFixed(2) + ': ' + label(e));
  } };
  const shown = () => [...document.querySelectorAll('section.mode')].filter(s => s.offsetHeight > 0).length;
  const modes = document.querySelectorAll('input[name=mode]');
  overflow(); contrast();
  let picked = 0;
  for (const [i, input] of modes.entries()) {
    document.querySelector(`label[for=${input.id}]`).click();
    const all = [...document.querySelectorAll('section.mode')];
    if (shown() !== 1) say('picker ' + i + ': ' + shown() + ' modes shown');
    else if (all.findIndex(s => s.offsetHeight > 0) === i) picked++;
    overflow(); contrast();
  }
  let sorted = 0;
  for (const input of document.querySelectorAll('input[name=sort]')) {
    document.querySelector(`label[for=${input.id}]`).click();
    const rows = [...document.querySelectorAll('table.sortable tbody tr')];
    const key = input.id.replace('sort-', '--');
    const at = rows.map(r => [r.getBoundingClientRect().top, Number(r.style.getPropertyValue(key))]).sort((a, b) => a[0] - b[0]);
    if (input.id !== 'sort-none') { if (at.some((r, i) => i && r[1] < at[i-1][1])) say('not sorted by ' + key); else sorted++; }
  }
  const requests = performance.getEntriesByType('resource').length;
  const dark = matchMedia('(prefers-color-scheme: dark)').matches;
  parent.postMessage({ width: innerWidth, dark, bad, least, picked, sorted, requests }, '*');
});
