// NOT TESTED WITH NEXTFLOW, see ../main.nf
//
// Layers are written by wsi-pgdips itself to where they stay, not to Nextflow's work folder, so that a
// slide that was interrupted goes on where it stopped, from whatever task. Hence paths are values, not
// staged files: also since slides of several files (.mrxs with its folder) do not survive staging. In
// a container their folders must be mounted (containerOptions, or apptainer.runOptions).

process DECONVOLVE {
    tag "${job.name}"
    label 'slide'
    // whether a slide is done is decided by wsi-pgdips, in seconds: Nextflow's cache does not know of
    // layers that were removed
    cache false

    input:
    val job
    val settings

    output:
    val job

    script:
    def config = settings ? "--config ${settings}" : ''
    """
    ${params.program} run ${job.slide} ${job.layers} --threads ${task.cpus} ${config} ${job.options}
    """
}

process NORMALIZE {
    tag "${job.name}"
    label 'picture'
    cache false

    input:
    val job

    output:
    val job

    script:
    // a picture appears when it is whole; its name holds the look, so one that is there is the one
    """
    if [ -e ${job.picture} ]; then
        echo there already: ${job.picture}
    else
        ${params.program} normalize ${job.layers} --slide ${job.slide} --reference ${job.reference} -o ${job.picture}
    fi
    """
}
