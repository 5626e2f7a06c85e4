/*
 * Adds a normalised TIFF (`wsi-pgdips normalize --output slide.tiff`) to a QuPath project, as
 * brightfield, with the stain vectors and background of the reference it was given.
 *
 *   QuPath script --project=project.qpproj --args=/path/to/slide.tiff open_normalized.groovy
 *
 * Written from QuPath 0.5's documented API, and NOT TESTED with QuPath by us: no part of it has
 * been run, only STAINS is checked (tests/adapters/test_qupath.py). For another reference put in
 * the argument of the line that `wsi-pgdips reference` or looks.qupath.script writes for it.
 */
import java.awt.image.BufferedImage
import qupath.lib.color.ColorDeconvolutionStains
import qupath.lib.images.ImageData
import qupath.lib.images.servers.ImageServerProvider

// the reference `he`
def STAINS = '{"Name" : "he", "Stain 1" : "Hematoxylin", "Values 1" : "0.56934 0.73576 0.36676", "Stain 2" : "Eosin", "Values 2" : "0.14967 0.92443 0.35076", "Background" : "243 243 243"}'
def TYPE = ImageData.ImageType.BRIGHTFIELD_H_E  // BRIGHTFIELD_H_DAB for `hdab`

def project = getProject()
if (project == null || args.size() < 1)
    throw new IllegalArgumentException('give a project (--project=) and a TIFF (--args=)')

def file = new File(args[0])
def support = ImageServerProvider.getPreferredUriImageSupport(BufferedImage.class, file.toURI().toString())
if (support == null || support.getBuilders().isEmpty())
    throw new IllegalArgumentException('QuPath cannot read ' + file)

def entry = project.addImage(support.getBuilders().get(0))
entry.setImageName(file.getName())
def imageData = entry.readImageData()
imageData.setImageType(TYPE)
imageData.setColorDeconvolutionStains(ColorDeconvolutionStains.parseColorDeconvolutionStainsArg(STAINS))
entry.saveImageData(imageData)
project.syncChanges()
println 'added ' + file.getName() + ' with the stains of ' + imageData.getColorDeconvolutionStains().getName()
