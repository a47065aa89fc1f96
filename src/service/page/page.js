'use strict';

// Renews the tables each second, and keeps what the plots need: the server keeps nothing for them.
(() => {
  const SPAN = 5 * 60e3;
  const SPAN_LEAST = 60e3;
  const MINUTE = 60e3;
  const PAUSE = 1e3;
  const PAUSE_HIDDEN = 5e3;
  const PATIENCE = 5e3;
  const [WIDTH, HEIGHT] = [300, 48];

  const count = (number) => Math.round(number).toLocaleString('en');
  const rate = (number) =>
    `${number > 0 && number < 10 ? number.toFixed(1) : count(number)}/s`;
  const size = (bytes) => {
    const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
    let unit = 0;
    for (; bytes >= 1024 && unit + 1 < units.length; unit++) bytes /= 1024;
    return `${unit > 0 && bytes < 100 ? bytes.toFixed(1) : Math.round(bytes)} ${units[unit]}`;
  };
  const sizeRate = (bytes) => `${size(bytes)}/s`;
  const lag = (nanos) => (nanos < 1e6 ? `${Math.round(nanos / 1e3)} µs` : `${(nanos / 1e6).toFixed(1)} ms`);

  // What each card plots: numbers as they are, or how fast counters grow.
  const PLOTS = {
    connections: { lines: ['connections'], text: count },
    accepted: { lines: ['accepted'], grows: true, text: rate },
    requests: { lines: ['requests'], grows: true, text: rate },
    bytes: { lines: ['bytes_in', 'bytes_out'], grows: true, text: sizeRate, names: ['in', 'out'] },
    buffered: { lines: ['buffered'], text: size },
    lag: { lines: ['lag'], text: lag },
  };

  const byId = (id) => document.getElementById(id);
  const make = (name, className, text) => {
    const element = document.createElement(name);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const draw = (name, attributes) => {
    const element = document.createElementNS('http://www.w3.org/2000/svg', name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    return element;
  };
  const say = (element, text) => {
    if (element.textContent !== text) element.textContent = text;
  };

  // The states of the last minutes, each with the server's time in `at`.
  let samples = [];
  let failedSince = null;

  // What a plot shows of each pair of samples: [time, values].
  const points = ({ lines, grows }) => {
    const found = [];
    samples.forEach((sample, index) => {
      const before = samples[index - 1];
      if (grows && !before) return;
      const seconds = grows ? (sample.at - before.at) / 1e3 : 1;
      const value = (name) => (sample.numbers[name] - (grows ? before.numbers[name] : 0)) / seconds;
      found.push([sample.at, lines.map(value)]);
    });
    return found;
  };

  const path = (found, line, most, from, width) =>
    found
      .map(([at, values], index) => {
        const x = ((at - from) / width) * WIDTH;
        const y = HEIGHT - (values[line] / most) * HEIGHT;
        // Where no state came for a while there is nothing to draw.
        const gap = index === 0 || at - found[index - 1][0] > 15e3;
        return `${gap ? 'M' : 'L'}${x.toFixed(1)} ${y.toFixed(1)}`;
      })
      .join('');

  const plot = (card, id) => {
    const { lines, text, names } = PLOTS[id];
    const found = points(PLOTS[id]);
    if (found.length === 0) return;
    const now = found[found.length - 1];
    const width = Math.min(SPAN, Math.max(SPAN_LEAST, elapsed()));
    const from = now[0] - width;
    const peak = Math.max(...found.map(([, values]) => Math.max(...values)));
    const most = peak > 0 ? peak : 1;

    const value = card.querySelector('.value');
    value.replaceChildren(
      ...lines.flatMap((_, line) => {
        const parts = [make('span', '', text(now[1][line]))];
        if (names) parts[0].append(' ', make('span', line ? 'second-name' : 'first-name', names[line]));
        return line ? [' ', ...parts] : parts;
      }),
    );
    const shapes = [draw('line', { class: 'base', x1: 0, y1: HEIGHT, x2: WIDTH, y2: HEIGHT })];
    lines.forEach((_, line) => {
      const d = path(found, line, most, from, width);
      const first = ((found[0][0] - from) / width) * WIDTH;
      if (lines.length === 1 && !d.slice(1).includes('M')) {
        shapes.push(draw('path', { class: 'area', d: `${d}L${WIDTH} ${HEIGHT}L${first.toFixed(1)} ${HEIGHT}Z` }));
      }
      shapes.push(draw('path', { class: line ? 'line second' : 'line', d }));
    });
    let place = card.querySelector('.plot');
    if (!place) {
      place = make('div', 'plot');
      place.append(
        make('p', 'most'),
        draw('svg', { role: 'img', viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: 'none' }),
      );
      card.append(place);
    }
    say(place.firstChild, `peak ${text(peak)}`);
    const title = card.querySelector('h2').textContent;
    const label = `${title} over the last ${span()}: now ${value.textContent}, at most ${text(peak)}`;
    place.lastChild.setAttribute('aria-label', label);
    place.lastChild.replaceChildren(...shapes);
  };

  const elapsed = () => samples[samples.length - 1].at - samples[0].at;
  const span = () => {
    const seconds = Math.round(elapsed() / 1e3);
    return seconds < 60 ? `${seconds} s` : `${Math.round(seconds / 60)} min`;
  };

  // How much a counter has grown within a minute, or since the first sample.
  const lately = (table, name) => {
    const now = samples[samples.length - 1];
    const before = samples.find((sample) => now.at - sample.at <= MINUTE) ?? now;
    return (now.counts[table]?.[name] ?? 0) - (before.counts[table]?.[name] ?? 0);
  };

  const renew = (section, id, { rows, note }) => {
    const body = section.querySelector('tbody');
    const columns = [...section.querySelectorAll('thead th')];
    rows.forEach((cells, at) => {
      const row = body.rows[at] ?? body.insertRow();
      columns.forEach((column, index) => {
        let cell = row.cells[index];
        if (!cell) {
          cell = make(index === 0 ? 'th' : 'td', column.className);
          if (index === 0) cell.scope = 'row';
          row.append(cell);
        }
        if (column.classList.contains('live')) {
          const grown = lately(id, cells[0]);
          say(cell, grown > 0 ? `+${count(grown)}` : '–');
          cell.classList.toggle('recent', grown > 0);
        } else {
          say(cell, cells[index]);
        }
      });
    });
    while (body.rows.length > rows.length) body.deleteRow(-1);
    say(section.querySelector('.note'), note);
    section.querySelector('.scroll').hidden = rows.length === 0;
    if (id === 'pools' || id === 'endpoints') section.hidden = rows.length === 0;
  };

  const show = (state) => {
    document.title = state.unready === null ? state.title : `! ${state.title}`;
    say(document.querySelector('h1'), state.title);
    status(state.unready === null, state.unready === null ? 'ready' : `not ready: ${state.unready}`);
    say(byId('when'), `renewed each second · plots of ${span()}`);
    for (const [id, [value, note]] of Object.entries(state.cards)) {
      const card = byId(id);
      if (samples.length === 1) say(card.querySelector('.value'), value);
      say(card.querySelector('.note'), note);
      plot(card, id);
    }
    for (const [id, table] of Object.entries(state.tables)) renew(byId(id), id, table);
  };

  const status = (good, text) => {
    byId('status').className = good ? 'ready' : 'unready';
    say(byId('status'), text);
  };

  const take = (state) => {
    const at = state.numbers.uptime;
    const before = samples[samples.length - 1];
    if (before?.at === at) return;
    // After a restart what was counted before says nothing.
    const restarted = before && (at < before.at || state.numbers.accepted < before.numbers.accepted);
    if (restarted) samples = [];
    samples.push({ at, numbers: state.numbers, counts: state.counts });
    samples = samples.filter((sample) => at - sample.at <= SPAN);
    failedSince = null;
    show(state);
  };

  const ask = async () => {
    try {
      const reply = await fetch('state', { cache: 'no-store', signal: AbortSignal.timeout(PATIENCE) });
      if (!reply.ok) throw new Error(`the server answers ${reply.status}`);
      take(await reply.json());
    } catch {
      failedSince ??= Date.now();
      status(false, `no answer for ${Math.round((Date.now() - failedSince) / 1e3)} s`);
      document.title = `! ${document.querySelector('h1').textContent}`;
    }
    setTimeout(ask, document.hidden ? PAUSE_HIDDEN : PAUSE);
  };

  document.documentElement.classList.add('scripted');
  ask();
})();
