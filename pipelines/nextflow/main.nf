// NOT TESTED WITH NEXTFLOW, which was not to be had where this was written: what was checked instead is
// in docs/pipelines.md.
//
// A cohort of slides, one task a slide:
//
//   nextflow run pipelines/nextflow/main.nf --manifest cohort.csv
//   nextflow run pipelines/nextflow/main.nf -profile slurm --manifest cohort.csv --reference he
//
// Written for Nextflow 24.10 or newer, DSL2 in its strict syntax. Parameters are explained in
// nextflow.config, the manifest in docs/pipelines.md. Nothing is lost without -resume: finished slides are
// recognised by their layers.

include { DECONVOLVE; NORMALIZE } from './modules/wsi_pgdips'

// Text as one word of a shell command.
def quoted(text) {
    return "'" + text.toString().replace("'", "'\\''") + "'"
}

// A path relative to a folder, or as it is where it is absolute.
def under(folder, text) {
    return folder.resolve(text.toString()).toString()
}

// The last part of a path without its last suffix.
def stem(path) {
    return path.toString().tokenize('/').last().replaceFirst(/(?<=.)\.[^.]*$/, '')
}

// A look, absolute where it is a file: a name has no suffix, which is how `normalize` tells them apart.
def look(folder, text) {
    return text.toString().contains('.') ? under(folder, text) : text.toString()
}

// One slide of the manifest, in words of a shell command.
def job(row, base, outdir, reference) {
    def slide = under(base, row.slide)
    def usual = stem(slide).replaceFirst(/\.ome$/, '') + '.ome.zarr'
    def layers = row.output ? under(base, row.output) : under(outdir, usual)
    def name = layers.tokenize('/').last().replaceFirst(/\.zarr$/, '').replaceFirst(/\.ome$/, '')
    def options = []
    if (row.stains) {
        // a name of the library, or a file
        def stains = row.stains.toLowerCase().endsWith('.toml') ? under(base, row.stains) : row.stains
        options = options + ['--stains', quoted(stains)]
    }
    if (row.mpp) {
        options = options + ['--mpp', quoted(row.mpp)]
    }
    if (row.mpp_source) {
        options = options + ['--mpp-source', quoted(row.mpp_source)]
    }
    if (row.mask) {
        options = options + ['--mask', quoted(under(base, row.mask))]
    }
    def own = row.reference ? look(base, row.reference) : reference
    return [
        name: name,
        slide: quoted(slide),
        layers: quoted(layers),
        options: options.join(' '),
        reference: own ? quoted(own) : '',
        picture: own ? quoted(under(outdir, name + '.' + stem(own) + '.tiff')) : '',
    ]
}

// All slides of the manifest; ends the run where it cannot be used.
def jobs(manifest, outdir, reference) {
    def columns = ['slide', 'stains', 'mpp', 'mpp_source', 'mask', 'output', 'reference']
    // spreadsheets put a mark at the beginning, and leave empty lines at the end
    def text = manifest.text.replace('\uFEFF', '')
    def rows = text.splitCsv(header: true, strip: true, quote: '"').findAll { row -> row.values().any { cell -> cell } }
    def unknown = rows.collectMany { row -> row.keySet().toList() }.unique() - columns
    if (unknown) {
        error("${manifest}: unknown columns ${unknown.join(', ')}; expected slide and any of ${columns.drop(1).join(', ')}")
    }
    if (!rows || rows.any { row -> !row.slide }) {
        error("${manifest}: each line needs a slide, and there must be one")
    }
    def found = rows.collect { row -> job(row, manifest.parent, outdir, reference) }
    def twice = found.countBy { one -> one.name }.findAll { entry -> entry.value > 1 }.keySet()
    if (twice) {
        error("${manifest}: several slides are called ${twice.join(', ')}, so that one would be written over the other; tell them apart in the column output")
    }
    return found
}

workflow {
    if (!params.manifest) {
        error('give a manifest: --manifest cohort.csv')
    }
    def manifest = file(params.manifest, checkIfExists: true).toAbsolutePath()
    def outdir = file(params.outdir).toAbsolutePath()
    outdir.mkdirs()
    def here = file('.').toAbsolutePath()
    def reference = params.reference ? look(here, params.reference) : null
    def settings = params.settings ? quoted(file(params.settings, checkIfExists: true).toAbsolutePath()) : ''

    DECONVOLVE(channel.fromList(jobs(manifest, outdir, reference)), settings)
    NORMALIZE(DECONVOLVE.out.filter { one -> one.reference })
}
